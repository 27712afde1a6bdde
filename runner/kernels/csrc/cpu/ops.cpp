#include "ops.h"

#include "isa.h"

namespace shale {

const OpTable& ops() noexcept {
#if SHALE_X86
  switch (active_isa()) {
    case Isa::avx512vnni:
    case Isa::amx:
      return ops_avx512;
    case Isa::avx2:
    case Isa::avxvnni:
      return ops_avx2;
    case Isa::portable:
      return ops_portable;
  }
#endif
  return ops_portable;
}

}  // namespace shale

// The matrix products for avx2. Compiled with that instruction set's flags: see isa.h for what may be included here.
#include "kernels.h"
#include "simd_avx2.h"

namespace shale {
const KernelTable kAvx2Kernels = make_table<Avx2<false>>();
}  // namespace shale

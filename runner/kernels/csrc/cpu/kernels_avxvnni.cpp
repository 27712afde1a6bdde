// The matrix products for avxvnni. Compiled with that instruction set's flags: see isa.h for what may be included here.
#include "kernels.h"
#include "simd_avx2.h"

namespace shale {
const KernelTable kAvxVnniKernels = make_table<Avx2<true>>();
}  // namespace shale

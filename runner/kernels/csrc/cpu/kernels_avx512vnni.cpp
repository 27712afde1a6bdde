// The matrix products for avx512vnni. Compiled with that instruction set's flags: see isa.h for what may be included
// here.
#include "kernels.h"
#include "simd_avx512.h"

namespace shale {
const KernelTable kAvx512VnniKernels = make_table<Avx512Vnni>();
}  // namespace shale

// The matrix products for portable. Compiled with that instruction set's flags: see isa.h for what may be included
// here.
#include "kernels.h"
#include "simd_portable.h"

namespace shale {
const KernelTable kPortableKernels = make_table<Portable>();
}  // namespace shale

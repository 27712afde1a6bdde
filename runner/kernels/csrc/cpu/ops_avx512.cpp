#include "ops_table.h"
#include "vector_avx512.h"

namespace shale {

constinit const OpTable ops_avx512 = kOpTable<avx512::F32x16>;

}  // namespace shale

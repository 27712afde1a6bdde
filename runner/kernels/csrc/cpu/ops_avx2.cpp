#include "ops_table.h"
#include "vector_avx2.h"

namespace shale {

constinit const OpTable ops_avx2 = kOpTable<avx2::F32x16>;

}  // namespace shale

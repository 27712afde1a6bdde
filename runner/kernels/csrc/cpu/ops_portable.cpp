#include "ops_table.h"
#include "vector_portable.h"

namespace shale {

constinit const OpTable ops_portable = kOpTable<portable::F32x16>;

}  // namespace shale

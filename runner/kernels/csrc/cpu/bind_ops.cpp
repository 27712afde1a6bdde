// Python bindings of everything but the matrix products. Each checks its arrays, releases the GIL when the work is
// worth it and splits the work by rows. runner/kernels/__init__.py documents the operations.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "array.h"
#include "attention.h"
#include "ops.h"
#include "pool.h"
#include "sample.h"

namespace nb = nanobind;

namespace shale {

void bind_ops(nb::module_& module);

namespace {

using Access = Array::Access;
constexpr int64_t kAny = Array::kAny;

// Elements of elementwise work that take about 5 us on one thread, what it costs to wake another; and about 1 us, from
// which on other Python threads may run meanwhile (giving the GIL away and back takes 0.1 us).
constexpr int64_t kMinParallelElements = 1 << 15;
constexpr int64_t kMinReleasedElements = 1 << 12;

// Gives the GIL away for the life of this object if the work is worth it.
class Released {
 public:
  explicit Released(int64_t num_elements) {
    if (num_elements >= kMinReleasedElements) released_.emplace();
  }

 private:
  std::optional<nb::gil_scoped_release> released_;
};

// f(first, count) over [0, n) in ranges of about half of kMinParallelElements elements, `width` to each index.
template <class F>
void split(int64_t n, int64_t width, F&& f) {
  const Released released(n * width);
  if (n * width < kMinParallelElements) return f(int64_t{0}, n);
  const int64_t step = std::max<int64_t>(1, kMinParallelElements / 2 / width);
  Pool::instance().run((n + step - 1) / step,
                       [&](int64_t piece, int) { f(piece * step, std::min(step, n - piece * step)); });
}

const Array& require_floats(const Array& array, std::initializer_list<int64_t> shape) {
  return array.require_kind("f").require_shape(shape);
}

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

// ---- norms and sums: (N, D)

void bound_rms_norm(nb::handle x_, nb::handle weight_, float eps, nb::handle out_) {
  const Array x("x", x_, Access::read), weight("weight", weight_, Access::read_optional);
  const Array out("out", out_, Access::write);
  require_floats(x, {kAny, kAny});
  const int64_t rows = x.size(0), dim = x.size(1);
  require_floats(weight, {dim});
  require_floats(out, {rows, dim});
  split(rows, dim, [&](int64_t first, int64_t count) {
    const int64_t at = first * dim;
    ops().rms_norm(x.data<float>() + at, weight.data<float>(), eps, out.data<float>() + at, count, dim);
  });
}

void bound_add_rms_norm(nb::handle residual_, nb::handle delta_, nb::handle weight_, float eps, nb::handle out_) {
  const Array residual("residual", residual_, Access::write), delta("delta", delta_, Access::read);
  const Array weight("weight", weight_, Access::read_optional), out("out", out_, Access::write);
  require_floats(residual, {kAny, kAny});
  const int64_t rows = residual.size(0), dim = residual.size(1);
  require_floats(delta, {rows, dim});
  require_floats(weight, {dim});
  require_floats(out, {rows, dim});
  split(rows, dim, [&](int64_t first, int64_t count) {
    const int64_t at = first * dim;
    ops().add_rms_norm(residual.data<float>() + at, delta.data<float>() + at, weight.data<float>(), eps,
                       out.data<float>() + at, count, dim);
  });
}

void bound_layer_norm(nb::handle x_, nb::handle weight_, nb::handle bias_, float eps, nb::handle out_) {
  const Array x("x", x_, Access::read), weight("weight", weight_, Access::read_optional);
  const Array bias("bias", bias_, Access::read_optional), out("out", out_, Access::write);
  require_floats(x, {kAny, kAny});
  const int64_t rows = x.size(0), dim = x.size(1);
  require_floats(weight, {dim});
  require_floats(bias, {dim});
  require_floats(out, {rows, dim});
  split(rows, dim, [&](int64_t first, int64_t count) {
    const int64_t at = first * dim;
    ops().layer_norm(x.data<float>() + at, weight.data<float>(), bias.data<float>(), eps, out.data<float>() + at, count,
                     dim);
  });
}

void bound_add(nb::handle x_, nb::handle delta_) {
  const Array x("x", x_, Access::write), delta("delta", delta_, Access::read);
  require_floats(x, {kAny, kAny});
  require_floats(delta, {x.size(0), x.size(1)});
  split(x.num_elements(), 1,
        [&](int64_t first, int64_t count) { ops().add(x.data<float>() + first, delta.data<float>() + first, count); });
}

// ---- positions and the cache: (T, heads, dim)

void bound_rope(nb::handle x_, nb::handle table_, bool neox) {
  const Array x("x", x_, Access::write), table("table", table_, Access::read);
  require_floats(x, {kAny, kAny, kAny});
  const int64_t tokens = x.size(0), heads = x.size(1), dim = x.size(2);
  require_floats(table, {tokens, kAny});
  const int64_t n_rot = table.size(1);
  if (n_rot % 2 != 0 || n_rot > dim) {
    refuse(table.describe() + "; its columns must be even and at most the head's " + std::to_string(dim));
  }
  split(tokens, heads * n_rot, [&](int64_t first, int64_t count) {
    ops().rope(x.data<float>() + first * heads * dim, table.data<float>() + first * n_rot, neox, count, heads, dim,
               n_rot);
  });
}

void require_cells(const Array& cells, int64_t num_cells) {
  const int32_t* cell = cells.data<int32_t>();
  uint32_t highest = 0;  // a negative cell is above every allowed one
  for (int64_t i = 0; i < cells.num_elements(); ++i) highest = std::max(highest, static_cast<uint32_t>(cell[i]));
  if (cells.num_elements() > 0 && highest >= num_cells) {
    refuse("cells holds " + std::to_string(static_cast<int32_t>(highest)) + "; the cache has cells 0 to " +
           std::to_string(num_cells - 1));
  }
}

// Copies token t's row of `width` floats to row cells[t] of the cache.
void store_rows(const Array& from, const Array& cache, const Array& cells, int64_t first, int64_t count) {
  const int64_t width = from.size(1) * from.size(2);
  for (int64_t t = first; t < first + count; ++t) {
    const int64_t to = cells.data<int32_t>()[t] * width;
    const float* row = from.data<float>() + t * width;
    if (cache.kind() == 'e') {
      ops().to_half(row, cache.data<uint16_t>() + to, width);
    } else {
      std::memcpy(cache.data<float>() + to, row, static_cast<std::size_t>(width) * sizeof(float));
    }
  }
}

void bound_store_kv(nb::handle k_, nb::handle v_, nb::handle k_cache_, nb::handle v_cache_, nb::handle cells_) {
  const Array k("k", k_, Access::read), v("v", v_, Access::read), cells("cells", cells_, Access::read);
  const Array k_cache("k_cache", k_cache_, Access::write), v_cache("v_cache", v_cache_, Access::write);
  require_floats(k, {kAny, kAny, kAny});
  const int64_t tokens = k.size(0), heads = k.size(1);
  require_floats(v, {tokens, heads, kAny});
  cells.require_kind("i").require_shape({tokens});
  k_cache.require_kind("ef").require_shape({kAny, heads, k.size(2)});
  v_cache.require_kind("ef").require_shape({k_cache.size(0), heads, v.size(2)});
  require_cells(cells, k_cache.size(0));
  split(tokens, heads * (k.size(2) + v.size(2)), [&](int64_t first, int64_t count) {
    store_rows(k, k_cache, cells, first, count);
    store_rows(v, v_cache, cells, first, count);
  });
}

void require_rows(const Array& rows, int64_t num_cells) {
  for (int64_t t = 0; t < rows.size(0); ++t) {
    const int32_t* row = rows.data<int32_t>() + 3 * t;
    const int64_t offset = row[0], first = row[1], end = row[2];
    if (offset >= 0 && first >= 0 && first <= end && offset + end <= num_cells) continue;
    refuse("rows[" + std::to_string(t) + "] is (" + std::to_string(offset) + ", " + std::to_string(first) + ", " +
           std::to_string(end) + "); 0 <= first <= end and 0 <= offset, offset + end <= " + std::to_string(num_cells) +
           " (the length of cells) must hold");
  }
}

void bound_attention(nb::handle q_, nb::handle k_cache_, nb::handle v_cache_, nb::handle cells_, nb::handle rows_,
                     float scale, float softcap, nb::handle out_) {
  const Array q("q", q_, Access::read), k_cache("k_cache", k_cache_, Access::read);
  const Array v_cache("v_cache", v_cache_, Access::read), cells("cells", cells_, Access::read);
  const Array rows("rows", rows_, Access::read), out("out", out_, Access::write);
  require_floats(q, {kAny, kAny, kAny});
  const int64_t tokens = q.size(0), heads = q.size(1);
  k_cache.require_kind("ef").require_shape({kAny, kAny, q.size(2)});
  const int64_t kv_heads = k_cache.size(1);
  if (kv_heads == 0 || heads % kv_heads != 0) {
    refuse(q.describe() + "; its heads must be a multiple of the cache's " + std::to_string(kv_heads));
  }
  const char cache_kind[] = {k_cache.kind(), '\0'};
  v_cache.require_kind(cache_kind).require_shape({k_cache.size(0), kv_heads, kAny});
  cells.require_kind("i").require_shape({kAny});
  rows.require_kind("i").require_shape({tokens, 3});
  require_floats(out, {tokens, heads, v_cache.size(2)});
  const nb::gil_scoped_release released;
  require_cells(cells, k_cache.size(0));
  require_rows(rows, cells.size(0));
  AttentionTask task{};
  task.q = q.data<float>();
  task.k_cache = k_cache.data<void>();
  task.v_cache = v_cache.data<void>();
  task.cells = cells.data<int32_t>();
  task.rows = rows.data<int32_t>();
  task.num_rows = tokens;
  task.num_heads = heads;
  task.num_kv_heads = kv_heads;
  task.key_length = q.size(2);
  task.value_length = v_cache.size(2);
  task.scale = scale;
  task.softcap = softcap;
  task.out = out.data<float>();
  attention(task, cache_kind[0] == 'e' ? CacheType::half : CacheType::single);
}

// ---- activations: (N, F)

using Gated = void (*OpTable::*)(const float*, const float*, float*, int64_t);

template <Gated kOp>
void bound_gated(nb::handle gate_, nb::handle up_, nb::handle out_) {
  const Array gate("gate", gate_, Access::read), up("up", up_, Access::read), out("out", out_, Access::write);
  require_floats(gate, {kAny, kAny});
  require_floats(up, {gate.size(0), gate.size(1)});
  require_floats(out, {gate.size(0), gate.size(1)});
  split(gate.num_elements(), 1, [&](int64_t first, int64_t count) {
    (ops().*kOp)(gate.data<float>() + first, up.data<float>() + first, out.data<float>() + first, count);
  });
}

void bound_gelu(nb::handle x_, nb::handle out_) {
  const Array x("x", x_, Access::read), out("out", out_, Access::write);
  require_floats(x, {kAny, kAny});
  require_floats(out, {x.size(0), x.size(1)});
  split(x.num_elements(), 1,
        [&](int64_t first, int64_t count) { ops().gelu(x.data<float>() + first, out.data<float>() + first, count); });
}

// ---- logits: (V,)

template <class T>
nb::object new_array(std::unique_ptr<T[]> values, int64_t n) {
  T* data = values.get();
  nb::capsule owner(values.release(), [](void* p) noexcept { delete[] static_cast<T*>(p); });
  const std::size_t shape[] = {static_cast<std::size_t>(n)};
  return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, 1, shape, owner));
}

nb::tuple bound_top_k(nb::handle logits_, int64_t k) {
  const Array logits("logits", logits_, Access::read);
  require_floats(logits, {kAny});
  const int64_t n = logits.size(0);
  if (n > INT32_MAX) refuse(logits.describe() + "; at most " + std::to_string(INT32_MAX) + " have ids");
  if (k <= 0 || k > n) k = n;
  auto ids = std::make_unique<int32_t[]>(static_cast<std::size_t>(k));
  auto values = std::make_unique<float[]>(static_cast<std::size_t>(k));
  if (k > 0) {
    const Released released(n);
    top_k(logits.data<float>(), n, k, ids.get(), values.get());
  }
  return nb::make_tuple(new_array(std::move(ids), k), new_array(std::move(values), k));
}

double bound_log_sum_exp(nb::handle logits_) {
  const Array logits("logits", logits_, Access::read);
  require_floats(logits, {kAny});
  if (logits.size(0) == 0) refuse(logits.describe() + "; at least one value is needed");
  const Released released(logits.size(0));
  return log_sum_exp(logits.data<float>(), logits.size(0));
}

}  // namespace

void bind_ops(nb::module_& module) {
  using nb::arg;
  const auto weight = arg("weight").none(), bias = arg("bias").none();
  module.def("rms_norm", &bound_rms_norm, arg("x"), weight, arg("eps"), arg("out"));
  module.def("add_rms_norm", &bound_add_rms_norm, arg("residual"), arg("delta"), weight, arg("eps"), arg("out"));
  module.def("layer_norm", &bound_layer_norm, arg("x"), weight, bias, arg("eps"), arg("out"));
  module.def("add", &bound_add, arg("x"), arg("delta"));
  module.def("rope", &bound_rope, arg("x"), arg("table"), arg("neox"));
  module.def("store_kv", &bound_store_kv, arg("k"), arg("v"), arg("k_cache"), arg("v_cache"), arg("cells"));
  module.def("attention", &bound_attention, arg("q"), arg("k_cache"), arg("v_cache"), arg("cells"), arg("rows"),
             arg("scale"), arg("softcap"), arg("out"));
  module.def("swiglu", &bound_gated<&OpTable::swiglu>, arg("gate"), arg("up"), arg("out"));
  module.def("geglu", &bound_gated<&OpTable::geglu>, arg("gate"), arg("up"), arg("out"));
  module.def("gelu", &bound_gelu, arg("x"), arg("out"));
  module.def("top_k", &bound_top_k, arg("logits"), arg("k"));
  module.def("log_sum_exp", &bound_log_sum_exp, arg("logits"));
}

}  // namespace shale

// Python bindings of everything but matrix products, cache and attention. Each checks its arrays, releases the GIL when
// the work is worth it and splits the work by rows. runner/kernels/__init__.py documents the operations.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <string>

#include "array.h"
#include "binding.h"
#include "ops.h"
#include "sample.h"

namespace nb = nanobind;

namespace shale {

void bind_ops(nb::module_& module);

namespace {

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

// ---- positions: (T, heads, dim)

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
  module.def("swiglu", &bound_gated<&OpTable::swiglu>, arg("gate"), arg("up"), arg("out"));
  module.def("geglu", &bound_gated<&OpTable::geglu>, arg("gate"), arg("up"), arg("out"));
  module.def("gelu", &bound_gelu, arg("x"), arg("out"));
  module.def("top_k", &bound_top_k, arg("logits"), arg("k"));
  module.def("log_sum_exp", &bound_log_sum_exp, arg("logits"));
}

}  // namespace shale

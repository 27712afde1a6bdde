// runner.kernels._cpu: the CPU kernels as a Python extension. Each bind_* file adds its functions.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "isa.h"
#include "pool.h"

namespace nb = nanobind;

namespace shale {

void bind_cache(nb::module_& module);
void bind_ops(nb::module_& module);
#if SHALE_HAS_MATMUL
void bind_matmul(nb::module_& module);
#endif

namespace {

// Runs a job whose pieces each take `nanoseconds` and returns how many pieces each worker ran. For tests and timings.
std::vector<int64_t> run_probe(int64_t num_pieces, int64_t nanoseconds) {
  std::vector<int64_t> pieces_of(Pool::kMaxSize, 0);
  Pool::instance().run(num_pieces, [&](int64_t, int worker) {
    ++pieces_of[static_cast<std::size_t>(worker)];
    if (nanoseconds <= 0) return;
    const auto end = std::chrono::steady_clock::now() + std::chrono::nanoseconds(nanoseconds);
    while (std::chrono::steady_clock::now() < end) continue;
  });
  pieces_of.resize(static_cast<std::size_t>(Pool::instance().size()));
  return pieces_of;
}

}  // namespace
}  // namespace shale

NB_MODULE(_cpu, module) {
  using namespace shale;
  using Released = nb::call_guard<nb::gil_scoped_release>;
  nb::set_leak_warnings(false);  // a process may end while a model is loaded
  module.def("available_isas", &available_isas);
  module.def("active_isa", [] { return std::string(isa_name(active_isa())); });
  module.def("set_isa", &set_isa, nb::arg("name"));
  module.def("num_threads", [] { return Pool::instance().size(); });
  module.def("set_num_threads", [](int n) { Pool::instance().resize(n); }, nb::arg("n"), Released());
  module.def("run_probe", &run_probe, nb::arg("num_pieces"), nb::arg("nanoseconds") = 0, Released());
  bind_cache(module);
  bind_ops(module);
#if SHALE_HAS_MATMUL
  bind_matmul(module);
#endif
}

// What the bindings share: splitting rows among threads, and refusing.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "array.h"
#include "pool.h"

namespace shale {

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
  std::optional<nanobind::gil_scoped_release> released_;
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

inline const Array& require_floats(const Array& array, std::initializer_list<int64_t> shape) {
  return array.require_kind("f").require_shape(shape);
}

[[noreturn]] inline void refuse(const std::string& message) { throw nanobind::value_error(message.c_str()); }

}  // namespace shale

// Python bindings of the cache of keys and values and of attention over it. Whatever comes in is checked here.
// runner/kernels/__init__.py documents the operations.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "array.h"
#include "attention.h"
#include "binding.h"
#include "cache_types.h"
#include "ops.h"

namespace nb = nanobind;

namespace shale {

void bind_cache(nb::module_& module);

namespace {

constexpr int64_t kMaxHeads = int64_t{1} << 20, kMaxLength = int64_t{1} << 20;  // so that no size overflows
constexpr int64_t kMinRotated = 64;

// Keys or values of one layer. Keeps the storage alive.
class CacheTensor {
 public:
  CacheTensor(CacheType type, int64_t num_heads, int64_t length, nb::handle storage)
      : storage_("storage", storage, Access::write), view_{storage_.data<uint8_t>(), type, num_heads, length, 0} {
    const CacheFormat& format = this->format();
    view_.head_bytes = length / format.block_values * format.block_bytes;
    storage_.require_kind("B").require_shape({kAny});
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(view_.data)) % format.alignment;
    if (past != 0) {
      refuse("storage lies " + std::to_string(past) + " bytes past a multiple of " + std::to_string(format.alignment) +
             "; cells of type " + format.name + " must be aligned to that");
    }
    num_cells_ = storage_.size(0) / cell_bytes();
  }
  CacheTensor(const CacheTensor&) = delete;
  CacheTensor& operator=(const CacheTensor&) = delete;

  const CacheView& view() const { return view_; }
  const CacheFormat& format() const { return kCacheFormats[static_cast<int>(view_.type)]; }
  int64_t num_cells() const { return num_cells_; }
  int64_t cell_bytes() const { return view_.num_heads * view_.head_bytes; }
  uint8_t* cell(int64_t number) const { return view_.data + number * cell_bytes(); }

  // "keys have cells of 8 heads of 64 values": for messages.
  std::string describe(const char* name) const {
    return std::string(name) + " have cells of " + std::to_string(view_.num_heads) + " heads of " +
           std::to_string(view_.length) + " values";
  }

 private:
  Array storage_;
  CacheView view_;
  int64_t num_cells_ = 0;
};

CacheType type_named(std::string_view name) {
  std::string known;
  for (int i = 0; i < kNumCacheTypes; ++i) {
    if (name == kCacheFormats[i].name) return static_cast<CacheType>(i);
    known += (i > 0 ? ", " : "") + std::string(kCacheFormats[i].name);
  }
  refuse("cache type '" + std::string(name) + "' is unknown; there are " + known);
}

CacheTensor* bound_cache(std::string_view type_name, int64_t num_heads, int64_t length, nb::handle storage) {
  const CacheType type = type_named(type_name);
  const CacheFormat& format = kCacheFormats[static_cast<int>(type)];
  if (num_heads < 1 || num_heads > kMaxHeads || length < 1 || length > kMaxLength) {
    refuse(std::to_string(num_heads) + " heads of " + std::to_string(length) + " values; 1 to " +
           std::to_string(kMaxHeads) + " of each are allowed");
  }
  if (length % format.block_values != 0) {
    refuse("a cache of type " + std::string(format.name) + " needs heads of a multiple of " +
           std::to_string(format.block_values) + " values, found " + std::to_string(length));
  }
  return new CacheTensor(type, num_heads, length, storage);
}

nb::object rows_of(nb::handle self) {
  const auto& cache = nb::cast<const CacheTensor&>(self);
  const std::size_t shape[] = {static_cast<std::size_t>(cache.num_cells()),
                               static_cast<std::size_t>(cache.cell_bytes())};
  return nb::cast(nb::ndarray<nb::numpy, uint8_t, nb::ndim<2>>(cache.view().data, 2, shape, self));
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

void require_heads(const CacheTensor& cache, const char* name, const Array& from) {
  if (cache.view().num_heads == from.size(1) && cache.view().length == from.size(2)) return;
  refuse(from.describe() + "; " + cache.describe(name));
}

// ---- keys and values: (T, heads, length)

void store_rows(const Array& from, const CacheTensor& cache, const int32_t* cells, int64_t first, int64_t count) {
  const int64_t width = from.size(1) * from.size(2);
  for (int64_t t = first; t < first + count; ++t) {
    ops().store_cache_row(cache.view().type, from.data<float>() + t * width, cache.cell(cells[t]), width);
  }
}

void bound_store_kv(nb::handle k_, nb::handle v_, const CacheTensor& keys, const CacheTensor& values,
                    nb::handle cells_) {
  const Array k("k", k_, Access::read), v("v", v_, Access::read), cells("cells", cells_, Access::read);
  require_floats(k, {kAny, kAny, kAny});
  const int64_t tokens = k.size(0);
  require_floats(v, {tokens, kAny, kAny});
  cells.require_kind("i").require_shape({tokens});
  require_heads(keys, "keys", k);
  require_heads(values, "values", v);
  require_cells(cells, std::min(keys.num_cells(), values.num_cells()));
  split(tokens, k.size(1) * k.size(2) + v.size(1) * v.size(2), [&](int64_t first, int64_t count) {
    store_rows(k, keys, cells.data<int32_t>(), first, count);
    store_rows(v, values, cells.data<int32_t>(), first, count);
  });
}

// Values of a block of the rotation in heads of `length` values.
int64_t rotated_block(int64_t length) {
  if (length % kMinRotated != 0) {
    refuse("heads of " + std::to_string(length) + " values cannot be rotated; a multiple of " +
           std::to_string(kMinRotated) + " is needed");
  }
  return length & -length;
}

void bound_hadamard(nb::handle x_) {
  const Array x("x", x_, Access::write);
  require_floats(x, {kAny, kAny, kAny});
  const int64_t block = rotated_block(x.size(2)), width = x.size(1) * x.size(2);
  split(x.size(0), width, [&](int64_t first, int64_t count) {
    ops().hadamard(x.data<float>() + first * width, block, count * width / block);
  });
}

void require_distinct(const Array& cells, int64_t num_cells) {
  std::vector<bool> found(static_cast<std::size_t>(num_cells));
  for (int64_t i = 0; i < cells.size(0); ++i) {
    const int32_t cell = cells.data<int32_t>()[i];
    auto entry = found[static_cast<std::size_t>(cell)];
    if (entry) refuse("cells holds " + std::to_string(cell) + " twice");
    entry = true;
  }
}

void bound_shift_keys(const CacheTensor& keys, nb::handle cells_, nb::handle table_, bool neox, bool rotated) {
  const Array cells("cells", cells_, Access::read), table("table", table_, Access::read);
  cells.require_kind("i").require_shape({kAny});
  require_floats(table, {kAny});
  require_cells(cells, keys.num_cells());
  require_distinct(cells, keys.num_cells());
  const CacheView& view = keys.view();
  const int64_t n_rot = table.size(0), width = view.num_heads * view.length;
  if (n_rot % 2 != 0 || n_rot > view.length) {
    refuse(table.describe() + "; its length must be even and at most the head's " + std::to_string(view.length));
  }
  const int64_t block = rotated ? rotated_block(view.length) : 1;
  split(cells.size(0), width, [&](int64_t first, int64_t count) {
    std::vector<float> moved(static_cast<std::size_t>(width));
    for (int64_t i = first; i < first + count; ++i) {
      uint8_t* cell = keys.cell(cells.data<int32_t>()[i]);
      ops().load_cache_row(view.type, cell, moved.data(), width);
      if (rotated) ops().hadamard(moved.data(), block, width / block);
      ops().rope(moved.data(), table.data<float>(), neox, 1, view.num_heads, view.length, n_rot);
      if (rotated) ops().hadamard(moved.data(), block, width / block);
      ops().store_cache_row(view.type, moved.data(), cell, width);
    }
  });
}

// ---- attention

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

void bound_attention(nb::handle q_, const CacheTensor& keys, const CacheTensor& values, nb::handle cells_,
                     nb::handle rows_, float scale, float softcap, nb::handle out_) {
  const Array q("q", q_, Access::read), cells("cells", cells_, Access::read);
  const Array rows("rows", rows_, Access::read), out("out", out_, Access::write);
  require_floats(q, {kAny, kAny, kAny});
  const int64_t tokens = q.size(0), heads = q.size(1), kv_heads = keys.view().num_heads;
  if (heads % kv_heads != 0 || q.size(2) != keys.view().length) {
    refuse(q.describe() + "; " + keys.describe("keys") + ": heads must be a multiple, values the same");
  }
  if (values.view().num_heads != kv_heads) refuse(keys.describe("keys") + ", but " + values.describe("values"));
  cells.require_kind("i").require_shape({kAny});
  rows.require_kind("i").require_shape({tokens, 3});
  require_floats(out, {tokens, heads, values.view().length});
  const nb::gil_scoped_release released;
  require_cells(cells, std::min(keys.num_cells(), values.num_cells()));
  require_rows(rows, cells.size(0));
  AttentionTask task{};
  task.q = q.data<float>();
  task.keys = keys.view();
  task.values = values.view();
  task.cells = cells.data<int32_t>();
  task.rows = rows.data<int32_t>();
  task.num_rows = tokens;
  task.num_heads = heads;
  task.num_kv_heads = kv_heads;
  task.key_length = q.size(2);
  task.value_length = values.view().length;
  task.scale = scale;
  task.softcap = softcap;
  task.out = out.data<float>();
  attention(task);
}

}  // namespace

void bind_cache(nb::module_& module) {
  using nb::arg;
  nb::class_<CacheTensor>(module, "CacheTensor", "Keys or values of one layer, of all cells; keeps its storage alive.")
      .def_prop_ro("type_name", [](const CacheTensor& c) { return c.format().name; })
      .def_prop_ro("num_cells", &CacheTensor::num_cells)
      .def_prop_ro("num_heads", [](const CacheTensor& c) { return c.view().num_heads; })
      .def_prop_ro("length", [](const CacheTensor& c) { return c.view().length; })
      .def_prop_ro("nbytes", [](const CacheTensor& c) { return c.num_cells() * c.cell_bytes(); })
      .def_prop_ro("rows", &rows_of);
  module.def("cache", &bound_cache, arg("type_name"), arg("num_heads"), arg("length"), arg("storage"),
             nb::rv_policy::take_ownership);
  module.def("store_kv", &bound_store_kv, arg("k"), arg("v"), arg("keys"), arg("values"), arg("cells"));
  module.def("hadamard", &bound_hadamard, arg("x"));
  module.def("shift_keys", &bound_shift_keys, arg("keys"), arg("cells"), arg("table"), arg("neox"), arg("rotated"));
  module.def("attention", &bound_attention, arg("q"), arg("keys"), arg("values"), arg("cells"), arg("rows"),
             arg("scale"), arg("softcap"), arg("out"));
}

}  // namespace shale

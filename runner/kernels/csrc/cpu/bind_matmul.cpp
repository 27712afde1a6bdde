// Python bindings of the matrix products: packed_bytes, pack, Matrix, linear, embed. Whatever comes in is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "linear.h"
#include "quant_types.h"
#include "repack.h"

namespace nb = nanobind;

namespace shale {
void bind_matmul(nb::module_& module);

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using OutArray = nb::ndarray<nb::device::cpu>;

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

// What a message calls an argument; text is only made when there is something to say.
struct Name {
  const char* argument;
  int index = -1;

  std::string text() const {
    std::string out(argument);
    if (index >= 0) out.append("[").append(std::to_string(index)).append("]");
    return out;
  }
};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

template <class A>
std::vector<int64_t> shape_of(const A& array) {
  std::vector<int64_t> shape(array.ndim());
  for (std::size_t i = 0; i < array.ndim(); ++i) shape[i] = static_cast<int64_t>(array.shape(i));
  return shape;
}

template <class A>
bool is_contiguous(const A& array) {
  int64_t step = 1;
  for (std::size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) > 1 && array.stride(i) != step) return false;
    step *= static_cast<int64_t>(array.shape(i));
  }
  return true;
}

template <class T>
constexpr const char* dtype_name = "float32";
template <>
constexpr const char* dtype_name<uint8_t> = "uint8";
template <>
constexpr const char* dtype_name<int32_t> = "int32";

template <class T, class A>
void check_values(const A& array, const Name& name, std::size_t ndim) {
  if (array.dtype() != nb::dtype<T>()) fail(name.text() + " must be " + dtype_name<T>);
  if (array.ndim() != ndim) {
    fail(name.text() + " has " + std::to_string(array.ndim()) + " dimensions; it must have " + std::to_string(ndim));
  }
  if (!is_contiguous(array)) fail(name.text() + " must be C-contiguous");
}

template <class T, class A>
void check_shape(const A& array, const Name& name, std::initializer_list<int64_t> shape) {
  check_values<T>(array, name, shape.size());
  std::size_t i = 0;
  for (int64_t extent : shape) {
    if (static_cast<int64_t>(array.shape(i++)) == extent) continue;
    fail(name.text() + " has shape " + shape_text(shape_of(array)) + "; it must be " + shape_text(shape));
  }
}

// `cols` columns in rows of a type: its index in the types' table.
int check_type(int type_id, int64_t cols) {
  const int type = find_type(type_id);
  if (type < 0) fail("type " + std::to_string(type_id) + " cannot be packed; known are " + known_types());
  const StoredType& stored = stored_type(type);
  if (cols <= 0 || cols >= int64_t{1} << 31 || cols % stored.columns != 0) {
    fail(std::to_string(cols) + " columns of " + stored.name + "; allowed are positive multiples of " +
         std::to_string(stored.columns) + " below 2^31");
  }
  return type;
}

int64_t packed_bytes(int type_id, int64_t rows, int64_t cols) {
  const StoredType& type = stored_type(check_type(type_id, cols));
  if (rows <= 0 || rows >= int64_t{1} << 31) fail(std::to_string(rows) + " rows; allowed are 1 to 2^31 - 1");
  const int64_t panels = num_panels(rows), bytes = type.panel_bytes(cols);
  if (panels > (int64_t{1} << 62) / bytes)
    fail(std::to_string(rows) + " rows of " + std::to_string(bytes) + " bytes: too large");
  return panels * bytes;
}

// A packed matrix. Keeps the storage alive that holds its panels.
struct Matrix {
  PackedMatrix packed;
  int64_t nbytes;
  OutArray storage;
};

Matrix pack(int type_id, int64_t rows, int64_t cols, const Array& source, OutArray storage) {
  const int64_t bytes = packed_bytes(type_id, rows, cols);
  const int type = check_type(type_id, cols);
  check_shape<uint8_t>(source, {"source"}, {rows * stored_type(type).row_bytes(cols)});
  check_shape<uint8_t>(storage, {"storage"}, {bytes});
  auto* panels = static_cast<uint8_t*>(storage.data());
  const auto misaligned = reinterpret_cast<uintptr_t>(panels) % kLine;
  if (misaligned != 0) {
    fail("storage lies " + std::to_string(misaligned) + " bytes past a multiple of 64; it must be aligned to 64");
  }
  const auto* rows_of_source = static_cast<const uint8_t*>(source.data());
  {
    nb::gil_scoped_release released;
    pack_rows(stored_type(type), rows, cols, rows_of_source, panels);
  }
  return {{type, rows, cols, panels}, bytes, std::move(storage)};
}

LinearForm form_named(const std::string& name) {
  if (name == "auto") return LinearForm::automatic;
  if (name == "direct") return LinearForm::direct;
  if (name == "panel") return LinearForm::panel;
  fail("form '" + name + "' is not known; known are auto, direct, panel");
}

using Biases = std::vector<std::optional<Array>>;

void check_count(const char* name, std::size_t found, std::size_t wanted) {
  if (found != wanted) {
    fail(std::to_string(found) + " " + name + " for " + std::to_string(wanted) + " matrices; there must be as many");
  }
}

void bound_linear(const Array& x, const std::vector<const Matrix*>& matrices, const std::vector<OutArray>& outs,
                  const std::optional<Biases>& biases, const std::string& form_name) {
  const LinearForm form = form_named(form_name);
  check_values<float>(x, {"x"}, 2);
  check_count("outs", outs.size(), matrices.size());
  if (biases) check_count("biases", biases->size(), matrices.size());
  const auto num_tokens = static_cast<int64_t>(x.shape(0)), cols = static_cast<int64_t>(x.shape(1));
  std::vector<LinearTarget> targets;
  targets.reserve(matrices.size());
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const int index = static_cast<int>(i);
    if (!matrices[i]) fail(Name{"matrices", index}.text() + " is None");
    const PackedMatrix& packed = matrices[i]->packed;
    if (packed.cols != cols) {
      fail("x has " + std::to_string(cols) + " columns; " + Name{"matrices", index}.text() + " has " +
           std::to_string(packed.cols));
    }
    check_shape<float>(outs[i], {"outs", index}, {num_tokens, packed.rows});
    const float* bias = nullptr;
    if (biases && (*biases)[i]) {
      check_shape<float>(*(*biases)[i], {"biases", index}, {packed.rows});
      bias = static_cast<const float*>((*biases)[i]->data());
    }
    targets.push_back({packed, bias, static_cast<float*>(outs[i].data())});
  }
  const auto* values = static_cast<const float*>(x.data());
  nb::gil_scoped_release released;
  linear(values, num_tokens, cols, targets, form);
}

void bound_embed(int type_id, const Array& source, int64_t cols, const Array& ids, const OutArray& out, float scale) {
  const StoredType& type = stored_type(check_type(type_id, cols));
  check_values<uint8_t>(source, {"source"}, 1);
  check_values<int32_t>(ids, {"ids"}, 1);
  const auto num_ids = static_cast<int64_t>(ids.shape(0)), bytes = static_cast<int64_t>(source.shape(0));
  check_shape<float>(out, {"out"}, {num_ids, cols});
  const int64_t row_bytes = type.row_bytes(cols), rows = bytes / row_bytes;
  if (bytes % row_bytes != 0) {
    fail("source has " + std::to_string(bytes) + " bytes; it must be whole rows of " + std::to_string(row_bytes));
  }
  const auto* values = static_cast<const int32_t*>(ids.data());
  for (int64_t t = 0; t < num_ids; ++t) {
    if (values[t] < 0 || values[t] >= rows) {
      fail("ids[" + std::to_string(t) + "] is " + std::to_string(values[t]) + "; allowed are 0 to " +
           std::to_string(rows - 1));
    }
  }
  const auto* raw = static_cast<const uint8_t*>(source.data());
  auto* results = static_cast<float*>(out.data());
  nb::gil_scoped_release released;
  embed_rows(type, raw, cols, values, num_ids, scale, results);
}

}  // namespace

void bind_matmul(nb::module_& module) {
  nb::class_<Matrix>(module, "Matrix", "A packed matrix; holds a reference to the storage of its panels.")
      .def_prop_ro("type_name", [](const Matrix& m) { return stored_type(m.packed.type).name; })
      .def_prop_ro("rows", [](const Matrix& m) { return m.packed.rows; })
      .def_prop_ro("cols", [](const Matrix& m) { return m.packed.cols; })
      .def_ro("nbytes", &Matrix::nbytes);
  module.def("packed_bytes", &packed_bytes, nb::arg("type_id"), nb::arg("rows"), nb::arg("cols"));
  module.def("pack", &pack, nb::arg("type_id"), nb::arg("rows"), nb::arg("cols"), nb::arg("source").noconvert(),
             nb::arg("storage").noconvert());
  module.def("linear", &bound_linear, nb::arg("x").noconvert(), nb::arg("matrices"), nb::arg("outs").noconvert(),
             nb::arg("biases").noconvert() = nb::none(), nb::arg("form") = "auto");
  module.def("embed", &bound_embed, nb::arg("type_id"), nb::arg("source").noconvert(), nb::arg("cols"),
             nb::arg("ids").noconvert(), nb::arg("out").noconvert(), nb::arg("scale") = 1.0f);
}

}  // namespace shale

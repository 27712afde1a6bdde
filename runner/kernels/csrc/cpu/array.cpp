#include "array.h"

#include <cstring>

namespace nb = nanobind;

namespace shale {
namespace {

struct Kind {
  char code;
  const char* name;
};
constexpr Kind kKinds[] = {{'f', "float32"}, {'e', "float16"}, {'i', "int32"}, {'B', "uint8"}};

std::string kind_name(char code, const char* format) {
  for (const Kind& kind : kKinds) {
    if (kind.code == code) return kind.name;
  }
  return std::string("dtype '") + format + "'";
}

std::string shape_text(const int64_t* shape, std::size_t count) {
  std::string text = "(";
  for (std::size_t i = 0; i < count; ++i) {
    if (i > 0) text += ", ";
    text += shape[i] == Array::kAny ? "any" : std::to_string(shape[i]);
  }
  return text + (count == 1 ? ",)" : ")");
}

}  // namespace

Array::Array(const char* name, nb::handle object, Access access) : name_(name), view_{} {
  if (access == Access::read_optional && object.is_none()) return;
  const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (access == Access::write ? PyBUF_WRITABLE : 0);
  if (PyObject_GetBuffer(object.ptr(), &view_, flags) == 0) return;
  if (!PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_BufferError)) {
    PyErr_Clear();
    throw nb::type_error(
        (std::string(name) + " is a " + Py_TYPE(object.ptr())->tp_name + "; a NumPy array is needed").c_str());
  }
  const nb::python_error error;
  throw nb::value_error((std::string(name) + " must be a C-contiguous" + (access == Access::write ? ", writable" : "") +
                         " array: " + nb::str(error.value()).c_str())
                            .c_str());
}

char Array::kind() const {
  const char* format = view_.format == nullptr ? "B" : view_.format;
  if (*format == '@' || *format == '=') ++format;
  if (format[0] == '\0' || format[1] != '\0') return '?';
  if (format[0] == 'l' && view_.itemsize == 4) return 'i';
  return std::strchr("feiB", format[0]) != nullptr ? format[0] : '?';
}

const Array& Array::require_kind(const char* kinds) const {
  if (is_none() || std::strchr(kinds, kind()) != nullptr) return *this;
  std::string allowed;
  for (const char* code = kinds; *code != '\0'; ++code) {
    allowed += (allowed.empty() ? "" : " or ") + kind_name(*code, "");
  }
  throw nb::value_error((describe() + "; it must be " + allowed).c_str());
}

const Array& Array::require_shape(std::initializer_list<int64_t> shape) const {
  if (is_none()) return *this;
  bool matches = shape.size() == static_cast<std::size_t>(num_dims());
  for (std::size_t i = 0; matches && i < shape.size(); ++i) {
    const int64_t wanted = shape.begin()[i];
    matches = wanted == kAny || wanted == view_.shape[i];
  }
  if (matches) return *this;
  throw nb::value_error((describe() + "; its shape must be " + shape_text(shape.begin(), shape.size())).c_str());
}

std::string Array::describe() const {
  int64_t shape[PyBUF_MAX_NDIM];
  for (int i = 0; i < num_dims(); ++i) shape[i] = view_.shape[i];
  return std::string(name_) + " is " + kind_name(kind(), view_.format == nullptr ? "B" : view_.format) + " " +
         shape_text(shape, static_cast<std::size_t>(num_dims()));
}

}  // namespace shale

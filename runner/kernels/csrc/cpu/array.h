// NumPy arrays as arguments: a checked view through the buffer protocol.
//
// nanobind's ndarray costs 160 ns an argument and answers a wrong dtype or shape with a TypeError that lists
// signatures; this takes 65 ns and says what was found and what is allowed.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <initializer_list>
#include <string>

namespace shale {

class Array {
 public:
  enum class Access { read, write, read_optional };  // optional: None is allowed, and passes every check
  static constexpr int64_t kAny = -1;

  // Raises TypeError when `object` has no buffer, ValueError when it is not C-contiguous or, to write, read-only.
  Array(const char* name, nanobind::handle object, Access access);
  ~Array() { PyBuffer_Release(&view_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  bool is_none() const { return view_.obj == nullptr; }
  int num_dims() const { return view_.ndim; }
  int64_t size(int dim) const { return view_.shape[dim]; }
  int64_t num_elements() const { return static_cast<int64_t>(view_.len) / static_cast<int64_t>(view_.itemsize); }
  char kind() const;  // 'f' float32, 'e' float16, 'i' int32, 'B' uint8; '?' anything else

  // Raise ValueError unless the array has this kind (any of `kinds`), and this shape (kAny: any size).
  const Array& require_kind(const char* kinds) const;
  const Array& require_shape(std::initializer_list<int64_t> shape) const;

  template <class T>
  T* data() const {  // null for None
    return static_cast<T*>(view_.buf);
  }

  // "k is float32 (3, 4)": for messages of further checks.
  std::string describe() const;

 private:
  const char* name_;
  Py_buffer view_;
};

}  // namespace shale

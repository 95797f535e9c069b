// What the bindings of csrc/cpu and csrc/cuda share: pointers come as integers, checks and memory are Python's.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fastxai {

namespace py = pybind11;

using Address = uintptr_t;
using Free = py::call_guard<py::gil_scoped_release>;

template <class T>
T* at(Address a) {
  return reinterpret_cast<T*>(a);
}

void bind_cpu(py::module_& m);
void bind_cuda(py::module_& m);

}  // namespace fastxai

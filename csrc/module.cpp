// The names of fastxai._C and nothing else.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "cpu/parallel.h"
#include "math.h"

namespace fastxai {
namespace {

std::vector<std::string> activation_names() { return {std::begin(act_names), std::end(act_names)}; }

}  // namespace
}  // namespace fastxai

PYBIND11_MODULE(_C, m) {
  m.def("activation_names", &fastxai::activation_names);
  m.def("parallel_runtime", &fastxai::cpu::parallel_runtime);
  fastxai::bind_cpu(m);
#ifdef FASTXAI_CUDA
  fastxai::bind_cuda(m);
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
}

// The names cpu_* of fastxai._C.
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/activation.h"
#include "../cpu/attack_step.h"
#include "../cpu/interpolate.h"
#include "../cpu/kendall.h"
#include "../cpu/linear.h"
#include "../cpu/max_pool.h"
#include "../cpu/mixed.h"
#include "../cpu/pool.h"
#include "../cpu/proportional.h"
#include "../cpu/thin_conv.h"
#include "../cpu/vectors.h"
#include "../cpu/winograd.h"
#include "bindings.h"

namespace fastxai {
namespace {

// The numbers are those of DTYPES in fastxai/kernels/_native.py.
template <class F>
void with_cpu_type(int dtype, const F& f) {
  switch (dtype) {
    case 0: return f(float{});
    case 1: return f(double{});
    default: throw std::invalid_argument("dtype must be 0 (float32) or 1 (float64), got " + std::to_string(dtype));
  }
}

void cpu_activation_push(int code, int second, double beta, double alpha, int dtype, int64_t elements,
                         int64_t directions, int64_t channels, int64_t inner, Address a, Address bias, Address y,
                         Address kept, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::activation_push<T>({code, second, beta, alpha}, {elements, directions, channels, inner}, at<T>(a), at<T>(bias),
                            at<T>(y), at<T>(kept), threads);
  });
}

void cpu_activation_pull(int code, int second, double beta, double alpha, int dtype, int64_t elements,
                         int64_t directions, Address kept, Address a_v, Address nu, Address mu, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::activation_pull<T>({code, second, beta, alpha}, {elements, directions, 1, 1}, at<T>(kept), at<T>(a_v),
                            at<T>(nu), at<T>(mu), threads);
  });
}

void cpu_activation_pull_primal(int code, int second, double beta, double alpha, int dtype, int64_t elements,
                                int64_t directions, Address kept, Address a_v, Address nu_v, Address nu_0, Address mu,
                                int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::activation_pull_primal<T>({code, second, beta, alpha}, {elements, directions, 1, 1}, at<T>(kept), at<T>(a_v),
                                   at<T>(nu_v), at<T>(nu_0), at<T>(mu), threads);
  });
}

void cpu_interpolate_push(int code, int second, double beta, double alpha, int dtype, int64_t elements, int64_t points,
                          int64_t channels, int64_t inner, Address a, Address bias, Address t, Address y, Address kept,
                          int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::interpolate_push<T>({code, second, beta, alpha}, {elements, points}, at<T>(a), {at<T>(bias), channels, inner},
                             at<T>(t), at<T>(y), at<T>(kept), threads);
  });
}

void cpu_interpolate_tangent(int code, int second, double beta, double alpha, int dtype, int64_t elements,
                             int64_t points, Address kept, Address a_v, Address y_v, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::interpolate_tangent<T>({code, second, beta, alpha}, {elements, points}, at<T>(kept), at<T>(a_v), at<T>(y_v),
                                threads);
  });
}

void cpu_interpolate_reduce(int code, int second, double beta, double alpha, int dtype, int64_t elements,
                            int64_t points, Address kept, Address nu, Address mu, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::interpolate_reduce<T>({code, second, beta, alpha}, {elements, points}, at<T>(kept), at<T>(nu), at<T>(mu),
                               threads);
  });
}

void cpu_interpolate_reduce_primal(int code, int second, double beta, double alpha, int dtype, int64_t elements,
                                   int64_t points, Address kept, Address a_v, Address nu_v, Address nu_0, Address t,
                                   Address m, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::interpolate_reduce_primal<T>({code, second, beta, alpha}, {elements, points}, at<T>(kept), at<T>(a_v),
                                      at<T>(nu_v), at<T>(nu_0), at<T>(t), at<T>(m), threads);
  });
}

void cpu_proportional_share(double epsilon, double kappa, int sign, bool alone, int dtype, int64_t elements, Address r,
                            Address z, Address y, Address shares, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::proportional_share<T>({epsilon, kappa, sign, alone}, elements, at<T>(r), at<T>(z), at<T>(y), at<T>(shares),
                               threads);
  });
}

void cpu_proportional_adjoint(double epsilon, double kappa, int sign, bool alone, int dtype, int64_t elements,
                              Address d, Address z, Address shares, Address y, Address t, Address dz, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::proportional_adjoint<T>({epsilon, kappa, sign, alone}, elements, at<T>(d), at<T>(z), at<T>(shares), at<T>(y),
                                 at<T>(t), at<T>(dz), threads);
  });
}

// The structs of sizes come as lists, in the order of their fields.
template <class Struct, size_t n, size_t... i>
Struct sized(const std::array<int64_t, n>& sizes, std::index_sequence<i...>) {
  return {sizes[i]...};
}

template <class Struct, size_t n>
Struct sized(const std::array<int64_t, n>& sizes) {
  return sized<Struct>(sizes, std::make_index_sequence<n>());
}

// The geometry of fastxai/kernels/max_pool.py: sizes, then kernel, stride, padding, dilation.
using Geometry = std::array<int64_t, 12>;

cpu::Pool pool(int64_t components, int64_t rows, int64_t channels, const Geometry& g, bool channels_last) {
  return {components, rows, channels, g[0], g[1], g[2],  g[3],  g[4],
          g[5],       g[6], g[7],     g[8], g[9], g[10], g[11], channels_last};
}

void cpu_max_pool_push(int dtype, int64_t components, int64_t rows, int64_t channels, const Geometry& geometry,
                       bool channels_last, bool find, Address x, Address y, Address index, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::max_pool_push<T>(pool(components, rows, channels, geometry, channels_last), find, at<T>(x), at<T>(y),
                          at<uint8_t>(index), threads);
  });
}

void cpu_max_pool_pull(int dtype, int64_t components, int64_t rows, int64_t channels, const Geometry& geometry,
                       bool channels_last, Address nu, Address index, Address mu, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::max_pool_pull<T>(pool(components, rows, channels, geometry, channels_last), at<T>(nu), at<uint8_t>(index),
                          at<T>(mu), threads);
  });
}

void cpu_mixed_push(int code, int second, double beta, double alpha, int dtype, int64_t elements, int64_t directions,
                    Address kept, Address a_v, Address a, Address y, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::mixed_push<T>({code, second, beta, alpha}, {elements, directions}, at<T>(kept), at<T>(a_v), at<T>(a), at<T>(y),
                       threads);
  });
}

void cpu_mixed_pull(int code, int second, double beta, double alpha, int dtype, int64_t elements, int64_t directions,
                    Address kept, Address a_v, Address a, Address nu, Address bar, Address mu, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::mixed_pull<T>({code, second, beta, alpha}, {elements, directions}, at<T>(kept), at<T>(a_v), at<T>(a),
                       at<T>(nu), at<T>(bar), at<T>(mu), threads);
  });
}

// The geometry of fastxai/kernels/attack_step.py: samples, elements, channels, inner.
using ImageGeometry = std::array<int64_t, 4>;

template <class T>
cpu::Images<T> images(const ImageGeometry& g, Address low, Address high, Address frozen) {
  return {g[0], g[1], g[2], g[3], at<T>(low), at<T>(high), at<bool>(frozen)};
}

void cpu_attack_step_adam(int dtype, const ImageGeometry& geometry, const std::array<double, 5>& adam, Address x,
                          Address gradient, Address m, Address v, Address low, Address high, Address frozen,
                          Address out, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::attack_step_adam<T>(images<T>(geometry, low, high, frozen), {adam[0], adam[1], adam[2], adam[3], adam[4]},
                             at<T>(x), at<T>(gradient), at<T>(m), at<T>(v), at<T>(out), threads);
  });
}

void cpu_attack_step_sign(int dtype, const ImageGeometry& geometry, double alpha, double eps, Address x,
                          Address gradient, Address origin, Address low, Address high, Address frozen, Address out,
                          int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::attack_step_sign<T>(images<T>(geometry, low, high, frozen), alpha, eps, at<T>(x), at<T>(gradient),
                             at<T>(origin), at<T>(out), threads);
  });
}

void cpu_attack_step_l2(int dtype, const ImageGeometry& geometry, double alpha, double eps, Address x,
                        Address gradient, Address origin, Address low, Address high, Address frozen, Address out,
                        int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::attack_step_l2<T>(images<T>(geometry, low, high, frozen), alpha, eps, at<T>(x), at<T>(gradient),
                           at<T>(origin), at<T>(out), threads);
  });
}

void cpu_kendall(int dtype, int64_t samples, int64_t size, Address a, Address b, Address counts, int threads) {
  with_cpu_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::kendall<T>(samples, size, at<T>(a), at<T>(b), at<int64_t>(counts), threads);
  });
}

// The geometry of fastxai/kernels/thin_conv.py, in the order of the struct.
void cpu_thin_conv_apply(const std::array<int64_t, 11>& g, Address x, Address weight, Address bias, Address y,
                         int threads) {
  const auto conv = sized<cpu::ThinConv>(g);
  cpu::thin_conv_apply(conv, at<float>(x), at<float>(weight), at<float>(bias), at<float>(y), threads);
}

void cpu_thin_conv_transpose(const std::array<int64_t, 11>& g, Address nu, Address weight, Address mu, int threads) {
  const auto conv = sized<cpu::ThinConv>(g);
  cpu::thin_conv_transpose(conv, at<float>(nu), at<float>(weight), at<float>(mu), threads);
}

// The sizes of fastxai/kernels/linear.py, in the order of the struct.
void cpu_linear_apply(const std::array<int64_t, 3>& s, Address x, Address weight, Address bias, Address y,
                      int registers, int threads) {
  const auto layer = sized<cpu::Linear>(s);
  cpu::linear_apply(layer, at<float>(x), at<float>(weight), at<float>(bias), at<float>(y), registers, threads);
}

void cpu_linear_transpose(const std::array<int64_t, 3>& s, Address nu, Address weight, Address mu, int registers,
                          int threads) {
  const auto layer = sized<cpu::Linear>(s);
  cpu::linear_transpose(layer, at<float>(nu), at<float>(weight), at<float>(mu), registers, threads);
}

void cpu_linear_weight_grad(const std::array<int64_t, 3>& s, Address nu, Address x, Address grad, int registers,
                            int threads) {
  const auto layer = sized<cpu::Linear>(s);
  cpu::linear_weight_grad(layer, at<float>(nu), at<float>(x), at<float>(grad), registers, threads);
}

// The geometry of fastxai/kernels/winograd.py, in the order of the struct.
void cpu_winograd_conv(const std::array<int64_t, 11>& g, Address x, Address u, Address bias, Address y, int registers,
                       int threads) {
  const auto conv = sized<cpu::Winograd>(g);
  cpu::winograd_conv(conv, at<float>(x), at<float>(u), at<float>(bias), at<float>(y), registers, threads);
}

void cpu_winograd_refine(const std::array<int64_t, 11>& g, Address least, Address of, Address z, Address x,
                         Address weight, Address bias, Address y, int threads) {
  const auto conv = sized<cpu::Winograd>(g);
  const cpu::Small where{at<float>(least), at<float>(of), at<float>(z)};
  cpu::winograd_refine(conv, where, at<float>(x), at<float>(weight), at<float>(bias), at<float>(y), threads);
}

void cpu_winograd_weight_grad(const std::array<int64_t, 11>& g, Address x, Address nu, Address du, int registers,
                              int pieces) {
  const auto conv = sized<cpu::Winograd>(g);
  cpu::winograd_weight_grad(conv, at<float>(x), at<float>(nu), at<float>(du), pieces, registers);
}

// A DLPack capsule, which whoever takes it renames; None where there is no memory.
py::object cpu_pool_tensor(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int64_t bytes,
                           int code, int bits) {
  void* tensor = cpu::pool_tensor(shape, strides, bytes, code, bits);
  if (!tensor) return py::none();
  PyObject* capsule = PyCapsule_New(tensor, "dltensor", [](PyObject* self) {
    if (PyCapsule_IsValid(self, "dltensor")) cpu::pool_discard(PyCapsule_GetPointer(self, "dltensor"));
  });
  if (!capsule) {
    cpu::pool_discard(tensor);
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

void bind_cpu(py::module_& m) {
  m.def("cpu_activation_push", &cpu_activation_push, Free());
  m.def("cpu_activation_pull", &cpu_activation_pull, Free());
  m.def("cpu_activation_pull_primal", &cpu_activation_pull_primal, Free());
  m.def("cpu_attack_step_adam", &cpu_attack_step_adam, Free());
  m.def("cpu_attack_step_l2", &cpu_attack_step_l2, Free());
  m.def("cpu_attack_step_sign", &cpu_attack_step_sign, Free());
  m.def("cpu_interpolate_push", &cpu_interpolate_push, Free());
  m.def("cpu_interpolate_tangent", &cpu_interpolate_tangent, Free());
  m.def("cpu_interpolate_reduce", &cpu_interpolate_reduce, Free());
  m.def("cpu_interpolate_reduce_primal", &cpu_interpolate_reduce_primal, Free());
  m.def("cpu_kendall", &cpu_kendall, Free());
  m.def("cpu_max_pool_push", &cpu_max_pool_push, Free());
  m.def("cpu_max_pool_pull", &cpu_max_pool_pull, Free());
  m.def("cpu_mixed_push", &cpu_mixed_push, Free());
  m.def("cpu_mixed_pull", &cpu_mixed_pull, Free());
  m.def("cpu_pool_tensor", &cpu_pool_tensor);
  m.def("cpu_pool_unused", &cpu::pool_unused);
  m.def("cpu_pool_clear", &cpu::pool_clear, Free());
  m.def("cpu_proportional_share", &cpu_proportional_share, Free());
  m.def("cpu_proportional_adjoint", &cpu_proportional_adjoint, Free());
  m.def("cpu_linear_apply", &cpu_linear_apply, Free());
  m.def("cpu_linear_transpose", &cpu_linear_transpose, Free());
  m.def("cpu_linear_weight_grad", &cpu_linear_weight_grad, Free());
  m.def("cpu_vector_registers", &cpu::vector_registers);
  m.def("cpu_thin_conv_apply", &cpu_thin_conv_apply, Free());
  m.def("cpu_thin_conv_transpose", &cpu_thin_conv_transpose, Free());
  m.def("cpu_winograd_conv", &cpu_winograd_conv, Free());
  m.def("cpu_winograd_refine", &cpu_winograd_refine, Free());
  m.def("cpu_winograd_weight_grad", &cpu_winograd_weight_grad, Free());
}

}  // namespace fastxai

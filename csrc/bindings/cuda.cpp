// The names cuda_* of fastxai._C.
#include <stdexcept>
#include <string>

#include "../cuda/activation.h"
#include "../cuda/mixed.h"
#include "bindings.h"

namespace fastxai {
namespace {

template <class F>
void with_cuda_type(int dtype, const F& f) {
  switch (dtype) {
    case 0: return f(float{});
    case 2: return f(__half{});
    case 3: return f(__nv_bfloat16{});
    default:
      throw std::invalid_argument("dtype must be 0 (float32), 2 (float16) or 3 (bfloat16), got " +
                                  std::to_string(dtype));
  }
}

void cuda_activation_push(int code, int second, double beta, double alpha, int dtype, int64_t elements,
                          int64_t directions, int64_t channels, int64_t inner, Address a, Address bias, Address y,
                          Address kept, Address stream) {
  with_cuda_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cuda::activation_push<T>({code, second, beta, alpha}, {elements, directions, channels, inner}, at<T>(a),
                             at<T>(bias), at<T>(y), at<T>(kept), reinterpret_cast<cudaStream_t>(stream));
  });
}

void cuda_activation_pull(int code, int second, double beta, double alpha, int dtype, int64_t elements,
                          int64_t directions, Address kept, Address a_v, Address nu, Address mu, Address stream) {
  with_cuda_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cuda::activation_pull<T>({code, second, beta, alpha}, {elements, directions, 1, 1}, at<T>(kept), at<T>(a_v),
                             at<T>(nu), at<T>(mu), reinterpret_cast<cudaStream_t>(stream));
  });
}

void cuda_activation_pull_primal(int code, int second, double beta, double alpha, int dtype, int64_t elements,
                                 int64_t directions, Address kept, Address a_v, Address nu_v, Address nu_0, Address mu,
                                 Address stream) {
  with_cuda_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cuda::activation_pull_primal<T>({code, second, beta, alpha}, {elements, directions, 1, 1}, at<T>(kept), at<T>(a_v),
                                    at<T>(nu_v), at<T>(nu_0), at<T>(mu), reinterpret_cast<cudaStream_t>(stream));
  });
}

void cuda_mixed_push(int code, int second, double beta, double alpha, int dtype, int64_t elements, int64_t directions,
                     Address kept, Address a_v, Address a, Address y, Address stream) {
  with_cuda_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cuda::mixed_push<T>({code, second, beta, alpha}, {elements, directions}, at<T>(kept), at<T>(a_v), at<T>(a),
                        at<T>(y), reinterpret_cast<cudaStream_t>(stream));
  });
}

void cuda_mixed_pull(int code, int second, double beta, double alpha, int dtype, int64_t elements, int64_t directions,
                     Address kept, Address a_v, Address a, Address nu, Address bar, Address mu, Address stream) {
  with_cuda_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    cuda::mixed_pull<T>({code, second, beta, alpha}, {elements, directions}, at<T>(kept), at<T>(a_v), at<T>(a),
                        at<T>(nu), at<T>(bar), at<T>(mu), reinterpret_cast<cudaStream_t>(stream));
  });
}
}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_activation_push", &cuda_activation_push, Free());
  m.def("cuda_activation_pull", &cuda_activation_pull, Free());
  m.def("cuda_activation_pull_primal", &cuda_activation_pull_primal, Free());
  m.def("cuda_mixed_push", &cuda_mixed_push, Free());
  m.def("cuda_mixed_pull", &cuda_mixed_pull, Free());
}

}  // namespace fastxai

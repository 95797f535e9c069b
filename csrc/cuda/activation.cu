// Activation jets on a GPU: s' and s'' are computed once for all directions.
#include "activation.h"

#include "pack.h"

namespace fastxai::cuda {
namespace {

// Adds the channel bias to the elements that start at `first`: one pair of divisions for all of them.
template <class Index, class T, int V>
__device__ void add_bias(Pack<T, V>& a, const T* bias, Index first, Index channels, Index inner) {
  const Index row = first / inner;
  Index channel = row % channels, offset = first - row * inner;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    a.at[i] += static_cast<float>(bias[channel]);
    if (++offset == inner) {
      offset = 0;
      if (++channel == channels) channel = 0;
    }
  }
}

template <class T>
struct Push {
  Scalars<float> scalars;
  Shape shape;
  const T *a, *bias;
  T *y, *kept;
};

template <Act act, int V, class T>
__global__ void __launch_bounds__(threads, 4) push_kernel(const Push<T> p) {
  const int64_t n = p.shape.elements, step = int64_t(gridDim.x) * threads * V;
  for (int64_t i = (int64_t(blockIdx.x) * threads + threadIdx.x) * V; i < n; i += step) {
    Pack<T, V> y = Pack<T, V>::load(p.a + i), kept, d1;
    if (p.bias) {
      if (n <= INT32_MAX) {
        add_bias<uint32_t>(y, p.bias, uint32_t(i), uint32_t(p.shape.channels), uint32_t(p.shape.inner));
      } else {
        add_bias<int64_t>(y, p.bias, i, p.shape.channels, p.shape.inner);
      }
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Jet<float> jet = evaluate<act, false>(y.at[j], p.scalars);
      y.at[j] = jet.y;
      kept.at[j] = jet.kept;
      d1.at[j] = jet.d1;
    }
    for (int64_t at = i + n, s = 0; s < p.shape.directions; ++s, at += n) {
      Pack<T, V> y_v = Pack<T, V>::load(p.a + at);
#pragma unroll
      for (int j = 0; j < V; ++j) y_v.at[j] *= d1.at[j];
      y_v.store(p.y + at);
    }
    y.store(p.y + i);
    kept.store(p.kept + i);
  }
}

// Both pulls: mu_v is null where only mu_0 is wanted, nu_0 is null where it is zero, a_v is null where s'' is.
template <class T>
struct Pull {
  Scalars<float> scalars;
  Shape shape;
  const T *kept, *a_v, *nu_v, *nu_0;
  T *mu_v, *mu_0;
};

template <Act act, bool curvature, int V, class T>
__global__ void __launch_bounds__(threads, 4) pull_kernel(const Pull<T> p) {
  const int64_t n = p.shape.elements, step = int64_t(gridDim.x) * threads * V;
  for (int64_t i = (int64_t(blockIdx.x) * threads + threadIdx.x) * V; i < n; i += step) {
    Pack<T, V> d1 = Pack<T, V>::load(p.kept + i), mu_v = Pack<T, V>::load(p.nu_v + i), curved;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Jet<float> jet = recall<act, curvature>(d1.at[j], p.scalars);
      d1.at[j] = jet.d1;
      curved.at[j] = jet.d2 * mu_v.at[j];
      mu_v.at[j] *= jet.d1;
    }
    for (int64_t at = i, s = 0; s < p.shape.directions; ++s, at += n) {
      Pack<T, V> mu{};
      if (p.nu_0) {
        mu = Pack<T, V>::load(p.nu_0 + at);
#pragma unroll
        for (int j = 0; j < V; ++j) mu.at[j] *= d1.at[j];
      }
      if (p.a_v) {
        const Pack<T, V> a_v = Pack<T, V>::load(p.a_v + at);
#pragma unroll
        for (int j = 0; j < V; ++j) mu.at[j] += curved.at[j] * a_v.at[j];
      }
      mu.store(p.mu_0 + at);
    }
    if (p.mu_v) mu_v.store(p.mu_v + i);
  }
}

template <class T>
void pull(const Activation& act, Pull<T> p, cudaStream_t stream) {
  if (p.shape.elements == 0) return;
  if (is_flat(act)) p.a_v = nullptr;
  visit(act, [&](auto choice) {
    using C = decltype(choice);
    if (aligned<T>(p.shape.elements, p.kept, p.a_v, p.nu_v, p.nu_0, p.mu_v, p.mu_0)) {
      const int grid = blocks(p.shape.elements, packed<T>);
      pull_kernel<C::code, C::surrogate, packed<T>><<<grid, threads, 0, stream>>>(p);
    } else {
      pull_kernel<C::code, C::surrogate, 1><<<blocks(p.shape.elements, 1), threads, 0, stream>>>(p);
    }
  });
  check(cudaGetLastError(), "activation pull");
}

}  // namespace

template <class T>
void activation_push(const Activation& act, const Shape& shape, const T* a, const T* bias, T* y, T* kept,
                     cudaStream_t stream) {
  if (shape.elements == 0) return;
  const Push<T> p{Scalars<float>(act), shape, a, bias, y, kept};
  visit(act, [&](auto choice) {
    using C = decltype(choice);
    if (aligned<T>(shape.elements, a, y, kept)) {
      push_kernel<C::code, packed<T>><<<blocks(shape.elements, packed<T>), threads, 0, stream>>>(p);
    } else {
      push_kernel<C::code, 1><<<blocks(shape.elements, 1), threads, 0, stream>>>(p);
    }
  });
  check(cudaGetLastError(), "activation push");
}

template <class T>
void activation_pull(const Activation& act, const Shape& shape, const T* kept, const T* a_v, const T* nu, T* mu,
                     cudaStream_t stream) {
  const int64_t n = shape.elements;
  pull(act, Pull<T>{Scalars<float>(act), shape, kept, a_v, nu, nu + n, mu, mu + n}, stream);
}

template <class T>
void activation_pull_primal(const Activation& act, const Shape& shape, const T* kept, const T* a_v, const T* nu_v,
                            const T* nu_0, T* mu, cudaStream_t stream) {
  pull(act, Pull<T>{Scalars<float>(act), shape, kept, a_v, nu_v, nu_0, nullptr, mu}, stream);
}

#define FASTXAI_INSTANTIATE(T)                                                                                      \
  template void activation_push(const Activation&, const Shape&, const T*, const T*, T*, T*, cudaStream_t);         \
  template void activation_pull(const Activation&, const Shape&, const T*, const T*, const T*, T*, cudaStream_t);   \
  template void activation_pull_primal(const Activation&, const Shape&, const T*, const T*, const T*, const T*, T*, \
                                       cudaStream_t);
FASTXAI_INSTANTIATE(float)
FASTXAI_INSTANTIATE(__half)
FASTXAI_INSTANTIATE(__nv_bfloat16)

}  // namespace fastxai::cuda

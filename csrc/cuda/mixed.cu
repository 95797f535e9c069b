// Order-2 activation jets on a GPU: the derivatives are computed once for all directions, and what these sum to stays in
// registers.
#include "mixed.h"

#include "pack.h"

namespace fastxai::cuda {
namespace {

template <class T>
struct Push {
  Scalars<float> scalars;
  Mixed shape;
  const T *kept, *a_v, *a;
  T* y;
};

template <Act act, bool curvature, int V, class T>
__global__ void __launch_bounds__(threads, 4) push_kernel(const Push<T> p) {
  const int64_t n = p.shape.elements, step = int64_t(gridDim.x) * threads * V;
  for (int64_t i = (int64_t(blockIdx.x) * threads + threadIdx.x) * V; i < n; i += step) {
    Pack<T, V> d1 = Pack<T, V>::load(p.kept + i), d2, bent{};
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Jet<float> jet = recall<act, curvature>(d1.at[j], p.scalars);
      d1.at[j] = jet.d1;
      d2.at[j] = jet.d2;
    }
    for (int64_t at = i, s = 0; s < p.shape.directions; ++s, at += n) {
      const Pack<T, V> a_v = Pack<T, V>::load(p.a_v + at);
      Pack<T, V> a_u = Pack<T, V>::load(p.a + at + n);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        bent.at[j] += a_u.at[j] * a_v.at[j];
        a_u.at[j] *= d1.at[j];
      }
      a_u.store(p.y + at + n);
    }
    Pack<T, V> y_w = Pack<T, V>::load(p.a + i);
#pragma unroll
    for (int j = 0; j < V; ++j) y_w.at[j] = d1.at[j] * y_w.at[j] + d2.at[j] * bent.at[j];
    y_w.store(p.y + i);
  }
}

template <class T>
struct Pull {
  Scalars<float> scalars;
  Mixed shape;
  const T *kept, *a_v, *a, *nu, *bar;
  T* mu;
};

template <Act act, bool curvature, int V, class T>
__global__ void __launch_bounds__(threads, 2) pull_kernel(const Pull<T> p) {
  const int64_t n = p.shape.elements, step = int64_t(gridDim.x) * threads * V;
  for (int64_t i = (int64_t(blockIdx.x) * threads + threadIdx.x) * V; i < n; i += step) {
    // of nu_v: times s'' and times s'''
    Pack<T, V> d1 = Pack<T, V>::load(p.kept + i), d2, once = Pack<T, V>::load(p.nu + i), twice, sum;
    const Pack<T, V> nu_0 = Pack<T, V>::load(p.bar + i), a_w = Pack<T, V>::load(p.a + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Jet<float> jet = recall<act, curvature>(d1.at[j], p.scalars);
      d1.at[j] = jet.d1;
      d2.at[j] = jet.d2;
      twice.at[j] = jet.d3 * once.at[j];
      once.at[j] *= jet.d2;
      sum.at[j] = d1.at[j] * nu_0.at[j] + once.at[j] * a_w.at[j];
    }
    for (int64_t at = i, s = 0; s < p.shape.directions; ++s, at += n) {
      const Pack<T, V> a_v = Pack<T, V>::load(p.a_v + at), a_u = Pack<T, V>::load(p.a + at + n);
      const Pack<T, V> start = Pack<T, V>::load(p.nu + at + n);
      Pack<T, V> bar = Pack<T, V>::load(p.bar + at + n);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        sum.at[j] += d2.at[j] * (a_u.at[j] * start.at[j] + a_v.at[j] * bar.at[j]) +
                     twice.at[j] * (a_u.at[j] * a_v.at[j]);
        bar.at[j] = d1.at[j] * bar.at[j] + once.at[j] * a_u.at[j];
      }
      bar.store(p.mu + at + n);
    }
    sum.store(p.mu + i);
  }
}

}  // namespace

template <class T>
void mixed_push(const Activation& act, const Mixed& shape, const T* kept, const T* a_v, const T* a, T* y,
                cudaStream_t stream) {
  if (shape.elements == 0) return;
  const Push<T> p{Scalars<float>(act), shape, kept, a_v, a, y};
  visit(act, [&](auto choice) {
    using C = decltype(choice);
    if (aligned<T>(shape.elements, kept, a_v, a, y)) {
      push_kernel<C::code, C::surrogate, packed<T>><<<blocks(shape.elements, packed<T>), threads, 0, stream>>>(p);
    } else {
      push_kernel<C::code, C::surrogate, 1><<<blocks(shape.elements, 1), threads, 0, stream>>>(p);
    }
  });
  check(cudaGetLastError(), "mixed push");
}

template <class T>
void mixed_pull(const Activation& act, const Mixed& shape, const T* kept, const T* a_v, const T* a, const T* nu,
                const T* bar, T* mu, cudaStream_t stream) {
  if (shape.elements == 0) return;
  const Pull<T> p{Scalars<float>(act), shape, kept, a_v, a, nu, bar, mu};
  visit(act, [&](auto choice) {
    using C = decltype(choice);
    if (aligned<T>(shape.elements, kept, a_v, a, nu, bar, mu)) {
      pull_kernel<C::code, C::surrogate, packed<T>><<<blocks(shape.elements, packed<T>), threads, 0, stream>>>(p);
    } else {
      pull_kernel<C::code, C::surrogate, 1><<<blocks(shape.elements, 1), threads, 0, stream>>>(p);
    }
  });
  check(cudaGetLastError(), "mixed pull");
}

#define FASTXAI_INSTANTIATE(T)                                                                                      \
  template void mixed_push(const Activation&, const Mixed&, const T*, const T*, const T*, T*, cudaStream_t);        \
  template void mixed_pull(const Activation&, const Mixed&, const T*, const T*, const T*, const T*, const T*, T*,   \
                           cudaStream_t);
FASTXAI_INSTANTIATE(float)
FASTXAI_INSTANTIATE(__half)
FASTXAI_INSTANTIATE(__nv_bfloat16)

}  // namespace fastxai::cuda

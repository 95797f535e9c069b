// Activation jets on a GPU. Every thread takes 16 bytes of each operand at a time where sizes and pointers allow it
// (single elements otherwise), computes s' and s'' once for all directions, and issues the loads of a direction before
// any store, because the compiler may not move a load above a store to memory that may be the same.
#include "activation.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fastxai::cuda {
namespace {

constexpr int threads = 256;

template <class T>
constexpr int packed = 16 / sizeof(T);

template <int size>
struct Bits;
template <>
struct Bits<2> {
  using type = unsigned short;
};
template <>
struct Bits<4> {
  using type = unsigned;
};
template <>
struct Bits<16> {
  using type = uint4;
};

template <class Access>
__device__ void put(Access* to, Access bits) {
  *to = bits;
}

// Spelled out, because the compiler splits a plain store of 16 bytes into four where others stand close by.
__device__ void put(uint4* to, uint4 bits) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(bits.x),
               "r"(bits.y), "r"(bits.z), "r"(bits.w)
               : "memory");
}

// V elements of storage T, moved by one access, as float.
template <class T, int V>
struct Pack {
  float at[V];

  static __device__ Pack load(const T* from) {
    using Access = typename Bits<sizeof(T) * V>::type;
    const Access bits = *reinterpret_cast<const Access*>(from);
    T stored[V];
    std::memcpy(stored, &bits, sizeof bits);
    Pack out;
#pragma unroll
    for (int i = 0; i < V; ++i) out.at[i] = static_cast<float>(stored[i]);
    return out;
  }

  __device__ void store(T* to) const {
    using Access = typename Bits<sizeof(T) * V>::type;
    T stored[V];
#pragma unroll
    for (int i = 0; i < V; ++i) stored[i] = static_cast<T>(at[i]);
    Access bits;
    std::memcpy(&bits, stored, sizeof bits);
    put(reinterpret_cast<Access*>(to), bits);
  }
};

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

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// True if every component of every operand (null ones pass) starts on a 16-byte boundary.
template <class T, class... Pointers>
bool aligned(const Shape& shape, const Pointers*... operands) {
  return shape.elements % packed<T> == 0 && ((reinterpret_cast<uintptr_t>(operands) % 16 == 0) && ...);
}

// As many blocks as the elements need, at most a few rounds of what the GPU holds at once (so that the last round's
// imbalance is small): the kernels stride over the rest.
int blocks(int64_t elements, int per_thread) {
  int device = 0, processors = 1;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  const int64_t span = int64_t(threads) * per_thread, most = int64_t(processors) * 32;
  return int(std::min((elements + span - 1) / span, most));
}

template <class T>
void pull(const Activation& act, Pull<T> p, cudaStream_t stream) {
  if (p.shape.elements == 0) return;
  if (is_flat(act)) p.a_v = nullptr;
  visit(act, [&](auto choice) {
    using C = decltype(choice);
    if (aligned<T>(p.shape, p.kept, p.a_v, p.nu_v, p.nu_0, p.mu_v, p.mu_0)) {
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
    if (aligned<T>(shape, a, y, kept)) {
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

// What the elementwise kernels share. Every thread takes 16 bytes of each operand at a time where sizes and pointers
// allow it (single elements otherwise) and issues the loads of a direction before any store, because the compiler may not
// move a load above a store to memory that may be the same.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastxai::cuda {

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
__device__ inline void put(Access* to, Access bits) {
  *to = bits;
}

// Spelled out, because the compiler splits a plain store of 16 bytes into four where others stand close by.
__device__ inline void put(uint4* to, uint4 bits) {
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

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// True if every component of every operand (null ones pass) starts on a 16-byte boundary.
template <class T, class... Pointers>
bool aligned(int64_t elements, const Pointers*... operands) {
  return elements % packed<T> == 0 && ((reinterpret_cast<uintptr_t>(operands) % 16 == 0) && ...);
}

// As many blocks as the elements need, at most a few rounds of what the GPU holds at once (so that the last round's
// imbalance is small): the kernels stride over the rest.
inline int blocks(int64_t elements, int per_thread) {
  int device = 0, processors = 1;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  const int64_t span = int64_t(threads) * per_thread, most = int64_t(processors) * 32;
  return int(std::min((elements + span - 1) / span, most));
}

}  // namespace fastxai::cuda

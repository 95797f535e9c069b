// Launchers of the order-2 activation jets on a GPU; the contract is in fastxai/kernels/mixed.py. All pointers are device
// pointers, T is float, __half or __nv_bfloat16, arithmetic is float. Nothing here synchronises or allocates.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../math.h"

namespace fastxai::cuda {

// Elements per component, number of directions.
struct Mixed {
  int64_t elements, directions;
};

// kept: elements; a_v: directions * elements; a, y: (1 + directions) * elements.
template <class T>
void mixed_push(const Activation& act, const Mixed& shape, const T* kept, const T* a_v, const T* a, T* y,
                cudaStream_t stream);

// kept: elements; a_v: directions * elements; a, nu, bar, mu: (1 + directions) * elements.
template <class T>
void mixed_pull(const Activation& act, const Mixed& shape, const T* kept, const T* a_v, const T* a, const T* nu,
                const T* bar, T* mu, cudaStream_t stream);

}  // namespace fastxai::cuda

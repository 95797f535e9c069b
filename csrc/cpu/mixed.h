// Activation jets of order 2 on the CPU; the contract is in fastxai/kernels/mixed.py. T is float or double.
#pragma once

#include <cstdint>

#include "../math.h"

namespace fastxai::cpu {

// Elements per component, number of directions.
struct Mixed {
  int64_t elements, directions;
};

// kept: elements; a_v: directions * elements; a, y: (1 + directions) * elements.
template <class T>
void mixed_push(const Activation& act, const Mixed& shape, const T* kept, const T* a_v, const T* a, T* y, int threads);

// kept: elements; a_v: directions * elements; a, nu, bar, mu: (1 + directions) * elements.
template <class T>
void mixed_pull(const Activation& act, const Mixed& shape, const T* kept, const T* a_v, const T* a, const T* nu,
                const T* bar, T* mu, int threads);

}  // namespace fastxai::cpu

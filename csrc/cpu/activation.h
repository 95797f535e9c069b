// Activation jets on the CPU; the contract is in fastxai/kernels/activation.py. T is float or double.
#pragma once

#include <cstdint>

#include "../math.h"

namespace fastxai::cpu {

// Elements per component, number of directions, and the bias geometry: element i has channel (i / inner) % channels.
struct Shape {
  int64_t elements, directions, channels, inner;
};

// a, y: (1 + directions) * elements; kept: elements, may be a; bias: channels, or null.
template <class T>
void activation_push(const Activation& act, const Shape& shape, const T* a, const T* bias, T* y, T* kept, int threads);

// kept: elements; a_v: directions * elements; nu, mu: (1 + directions) * elements, mu may be nu.
template <class T>
void activation_pull(const Activation& act, const Shape& shape, const T* kept, const T* a_v, const T* nu, T* mu,
                     int threads);

// kept, nu_v: elements; a_v, nu_0, mu: directions * elements, nu_0 may be null, mu may be nu_0.
template <class T>
void activation_pull_primal(const Activation& act, const Shape& shape, const T* kept, const T* a_v, const T* nu_v,
                            const T* nu_0, T* mu, int threads);

}  // namespace fastxai::cpu

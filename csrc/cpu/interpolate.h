// Activations along a straight path on the CPU; the contract: fastxai/kernels/interpolate.py. T is float or double.
#pragma once

#include <cstdint>

#include "../math.h"
#include "bias.h"

namespace fastxai::cpu {

// Elements of one point, and number of points; what belongs to all points lies point by point.
struct Path {
  int64_t elements, points;
};

// a: 2 * elements, start and difference; t: points; y, kept: points * elements.
template <class T>
void interpolate_push(const Activation& act, const Path& path, const T* a, const Bias<T>& bias, const T* t, T* y,
                      T* kept, int threads);

// kept, y_v: points * elements; a_v: elements.
template <class T>
void interpolate_tangent(const Activation& act, const Path& path, const T* kept, const T* a_v, T* y_v, int threads);

// kept, nu: points * elements; mu: elements.
template <class T>
void interpolate_reduce(const Activation& act, const Path& path, const T* kept, const T* nu, T* mu, int threads);

// kept, nu_v, nu_0: points * elements, nu_0 may be null; a_v: elements; t: points; m: 2 * elements.
template <class T>
void interpolate_reduce_primal(const Activation& act, const Path& path, const T* kept, const T* a_v, const T* nu_v,
                               const T* nu_0, const T* t, T* m, int threads);

}  // namespace fastxai::cpu

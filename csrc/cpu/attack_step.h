// Steps of attacks on the CPU; the contract: fastxai/kernels/attack_step.py. T is float or double.
#pragma once

#include <cstdint>

namespace fastxai::cpu {

// Element i of a sample has channel (i / inner) % channels; low, high: channels; frozen: samples, or null.
template <class T>
struct Images {
  int64_t samples, elements, channels, inner;
  const T *low, *high;
  const bool* frozen;
};

// size = lr / (1-b1^t), correction = 1 / sqrt(1-b2^t).
struct Adam {
  double beta_1, beta_2, eps, size, correction;
};

// x, gradient, m, v, out: samples * elements; m and v are updated.
template <class T>
void attack_step_adam(const Images<T>& images, const Adam& adam, const T* x, const T* gradient, T* m, T* v, T* out,
                      int threads);

// gradient may be null: then x is projected where it is.
template <class T>
void attack_step_sign(const Images<T>& images, double alpha, double eps, const T* x, const T* gradient,
                      const T* origin, T* out, int threads);
template <class T>
void attack_step_l2(const Images<T>& images, double alpha, double eps, const T* x, const T* gradient, const T* origin,
                    T* out, int threads);

}  // namespace fastxai::cpu

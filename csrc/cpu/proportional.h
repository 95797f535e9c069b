// Proportional shares of relevance on the CPU; the contract: fastxai/kernels/proportional.py. T is float or double.
#pragma once

#include <cstdint>

namespace fastxai::cpu {

// S = kappa r / stab(z); where sign is not 0, only where y has that sign; with `alone`, only where z is not 0.
struct Shares {
  double epsilon, kappa;
  int sign;
  bool alone;
};

// All operands hold `elements` numbers; y is read only where sign is not 0.
template <class T>
void proportional_share(const Shares& how, int64_t elements, const T* r, const T* z, const T* y, T* shares,
                        int threads);

// t may be d.
template <class T>
void proportional_adjoint(const Shares& how, int64_t elements, const T* d, const T* z, const T* shares, const T* y,
                          T* t, T* dz, int threads);

}  // namespace fastxai::cpu

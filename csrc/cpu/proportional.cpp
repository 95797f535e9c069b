// Floor: share reads 2 tensors (3 with a mask) and writes 1, adjoint reads 3 (4) and writes 2.
#include "proportional.h"

#include "../math.h"
#include "parallel.h"

namespace fastxai::cpu {
namespace {

// Inner bounds of the threads' pieces are whole cache lines.
constexpr int64_t grain = 256;
// Waking the team costs 2 us.
constexpr int64_t serial = 1 << 14;

template <class T>
struct Scaled {
  T epsilon, kappa, sign;
  bool alone;
  explicit Scaled(const Shares& how)
      : epsilon(T(how.epsilon)), kappa(T(how.kappa)), sign(T(how.sign)), alone(how.alone) {}
};

template <bool alone, class T>
FASTXAI_INLINE T over_stable(T x, T z, T epsilon) {
  const T quotient = x / (z < 0 ? z - epsilon : z + epsilon);
  return alone && z == 0 ? T(0) : quotient;
}

template <class T>
struct Share {
  Scaled<T> c;
  const T *r, *z, *y;
  T* shares;
};

template <bool masked, bool alone, class T>
FASTXAI_INLINE void run(const Share<T>& p, int64_t begin, int64_t end) {
  const auto [epsilon, kappa, sign, _] = p.c;
  FASTXAI_VECTOR for (int64_t i = begin; i < end; ++i) {
    const T share = kappa * over_stable<alone>(p.r[i], p.z[i], epsilon);
    p.shares[i] = !masked || p.y[i] * sign > 0 ? share : T(0);
  }
}

template <class T>
struct Adjoint {
  Scaled<T> c;
  const T *d, *z, *shares, *y;
  T *t, *dz;
};

template <bool masked, bool alone, class T>
FASTXAI_INLINE void run(const Adjoint<T>& p, int64_t begin, int64_t end) {
  const auto [epsilon, kappa, sign, _] = p.c;
  FASTXAI_VECTOR for (int64_t i = begin; i < end; ++i) {
    const T quotient = over_stable<alone>(p.d[i], p.z[i], epsilon);
    p.dz[i] = -quotient * p.shares[i];
    p.t[i] = !masked || p.y[i] * sign > 0 ? kappa * quotient : T(0);
  }
}

template <bool masked, class Kernel>
FASTXAI_INLINE void run(const Kernel& p, int64_t begin, int64_t end) {
  p.c.alone ? run<masked, true>(p, begin, end) : run<masked, false>(p, begin, end);
}

#define FASTXAI_CLONE(Kernel, T)                                              \
  FASTXAI_CLONES void clone(const Kernel<T>& p, int64_t begin, int64_t end) { \
    p.c.sign == 0 ? run<false>(p, begin, end) : run<true>(p, begin, end);     \
  }
FASTXAI_CLONE(Share, float)
FASTXAI_CLONE(Share, double)
FASTXAI_CLONE(Adjoint, float)
FASTXAI_CLONE(Adjoint, double)
#undef FASTXAI_CLONE

template <class Kernel>
void launch(const Kernel& p, int64_t elements, int threads) {
  parallel_for(elements, grain, elements < serial ? 1 : threads,
               [&](int64_t begin, int64_t end) { clone(p, begin, end); });
}

}  // namespace

template <class T>
void proportional_share(const Shares& how, int64_t elements, const T* r, const T* z, const T* y, T* shares,
                        int threads) {
  launch(Share<T>{Scaled<T>(how), r, z, y, shares}, elements, threads);
}

template <class T>
void proportional_adjoint(const Shares& how, int64_t elements, const T* d, const T* z, const T* shares, const T* y,
                          T* t, T* dz, int threads) {
  launch(Adjoint<T>{Scaled<T>(how), d, z, shares, y, t, dz}, elements, threads);
}

#define FASTXAI_INSTANTIATE(T)                                                                           \
  template void proportional_share(const Shares&, int64_t, const T*, const T*, const T*, T*, int);       \
  template void proportional_adjoint(const Shares&, int64_t, const T*, const T*, const T*, const T*, T*, \
                                      T*, int);
FASTXAI_INSTANTIATE(float)
FASTXAI_INSTANTIATE(double)

}  // namespace fastxai::cpu

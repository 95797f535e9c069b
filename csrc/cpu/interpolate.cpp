// Blocks of elements outside, points inside: what the points share, and their sums, stay in cache, so that each tensor
// crosses memory once. Floor: push reads 2 and writes 2 points tensors of one point's size, reduce
// reads 2 points and writes 1, reduce_primal reads 1 + 3 points and writes 2.
#include "interpolate.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace fastxai::cpu {
namespace {

// push holds one biased block.
constexpr int64_t block = 2048;
// The others stream: on one core runs of 16384 float32 moved 21 GB/s, of 4096 18, of 1024 15 (a dot product 27). The
// sums of such a run fit the second-level cache.
constexpr int64_t stretch = 1 << 14;
// Inner bounds of the threads' pieces are multiples of whole cache lines, not of a block: few elements may have many
// points.
constexpr int64_t grain = 256;
// Waking the team costs 2 us.
constexpr int64_t serial = 1 << 14;

int useful(int threads, const Path& path) { return path.elements * path.points < serial ? 1 : threads; }

template <class T>
struct Push {
  const Activation& act;
  Scalars<T> scalars;
  Path path;
  Bias<T> bias;
  const T *a, *t;
  T *y, *kept;
};

template <class T>
FASTXAI_INLINE void run(const Push<T>& p, int64_t begin, int64_t end) {
  const Scalars<T> c = p.scalars;
  visit(p.act, [&](auto choice) __attribute__((always_inline)) {
    constexpr Act act = decltype(choice)::code;
    alignas(64) T biased[block];
    for (int64_t start = begin; start < end; start += block) {
      const int64_t n = std::min(block, end - start);
      const T *origin = p.a + start, *step = origin + p.path.elements;
      if (p.bias.values) {
        add_bias(origin, p.bias, start, n, biased);
        origin = biased;
      }
      for (int64_t k = 0; k < p.path.points; ++k) {
        const T t = p.t[k];
        T *y = p.y + k * p.path.elements + start, *kept = p.kept + k * p.path.elements + start;
        FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) {
          const Jet<T> jet = evaluate<act, false>(origin[i] + t * step[i], c);
          y[i] = jet.y;
          kept[i] = jet.kept;
        }
      }
    }
  });
}

template <class T>
struct Tangent {
  const Activation& act;
  Scalars<T> scalars;
  Path path;
  const T *kept, *a_v;
  T* y_v;
};

template <class T>
FASTXAI_INLINE void run(const Tangent<T>& p, int64_t begin, int64_t end) {
  const Scalars<T> c = p.scalars;
  visit(p.act, [&](auto choice) __attribute__((always_inline)) {
    using C = decltype(choice);
    for (int64_t start = begin; start < end; start += stretch) {
      const int64_t n = std::min(stretch, end - start);
      const T* a_v = p.a_v + start;
      for (int64_t k = 0; k < p.path.points; ++k) {
        const T* kept = p.kept + k * p.path.elements + start;
        T* y_v = p.y_v + k * p.path.elements + start;
        FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) y_v[i] = recall<C::code, C::surrogate>(kept[i], c).d1 * a_v[i];
      }
    }
  });
}

// Both reductions: a_v and nu_v are null where s'' plays no part, nu_0 where it is zero, m1 and t where only M0 is
// wanted.
template <class T>
struct Reduce {
  const Activation& act;
  Scalars<T> scalars;
  Path path;
  const T *kept, *a_v, *nu_v, *nu_0, *t;
  T *m0, *m1;
};

template <class C, bool straight, bool curved, bool both, class T>
FASTXAI_INLINE void add_points(const Reduce<T>& p, const Scalars<T>& c, int64_t start, int64_t n) {
  T *m0 = p.m0 + start, *m1 = both ? p.m1 + start : nullptr;
  const T* a_v = curved ? p.a_v + start : nullptr;
  for (int64_t k = 0; k < p.path.points; ++k) {
    const int64_t at = k * p.path.elements + start;
    const T *kept = p.kept + at, *nu_v = curved ? p.nu_v + at : nullptr, *nu_0 = straight ? p.nu_0 + at : nullptr;
    const T t = both ? p.t[k] : T(0);
    FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) {
      const Jet<T> jet = recall<C::code, C::surrogate>(kept[i], c);
      T mu = 0;
      if constexpr (straight) mu += jet.d1 * nu_0[i];
      if constexpr (curved) mu += jet.d2 * (a_v[i] * nu_v[i]);
      m0[i] += mu;
      if constexpr (both) m1[i] += t * mu;
    }
  }
}

template <class T>
FASTXAI_INLINE void run(const Reduce<T>& p, int64_t begin, int64_t end) {
  const Scalars<T> c = p.scalars;
  visit(p.act, [&](auto choice) __attribute__((always_inline)) {
    using C = decltype(choice);
    for (int64_t start = begin; start < end; start += stretch) {
      const int64_t n = std::min(stretch, end - start);
      std::fill_n(p.m0 + start, n, T(0));
      if (p.m1) std::fill_n(p.m1 + start, n, T(0));
      if (!p.m1) {
        add_points<C, true, false, false>(p, c, start, n);
      } else if (p.nu_0 && p.a_v) {
        add_points<C, true, true, true>(p, c, start, n);
      } else if (p.nu_0) {
        add_points<C, true, false, true>(p, c, start, n);
      } else if (p.a_v) {
        add_points<C, false, true, true>(p, c, start, n);
      }
    }
  });
}

#define FASTXAI_CLONE(Kernel)                                                                            \
  FASTXAI_CLONES void clone(const Kernel<float>& p, int64_t begin, int64_t end) { run(p, begin, end); }  \
  FASTXAI_CLONES void clone(const Kernel<double>& p, int64_t begin, int64_t end) { run(p, begin, end); }
FASTXAI_CLONE(Push)
FASTXAI_CLONE(Tangent)
FASTXAI_CLONE(Reduce)
#undef FASTXAI_CLONE

template <class Kernel>
void launch(const Kernel& p, int threads) {
  parallel_for(p.path.elements, grain, useful(threads, p.path),
               [&](int64_t begin, int64_t end) { clone(p, begin, end); });
}

}  // namespace

template <class T>
void interpolate_push(const Activation& act, const Path& path, const T* a, const Bias<T>& bias, const T* t, T* y,
                      T* kept, int threads) {
  if (path.elements == 0) return;  // bias.inner may be 0 too
  std::vector<T> pattern;
  launch(Push<T>{act, Scalars<T>(act), path, spelled_out(bias, block, pattern), a, t, y, kept}, threads);
}

template <class T>
void interpolate_tangent(const Activation& act, const Path& path, const T* kept, const T* a_v, T* y_v, int threads) {
  launch(Tangent<T>{act, Scalars<T>(act), path, kept, a_v, y_v}, threads);
}

template <class T>
void interpolate_reduce(const Activation& act, const Path& path, const T* kept, const T* nu, T* mu, int threads) {
  launch(Reduce<T>{act, Scalars<T>(act), path, kept, nullptr, nullptr, nu, nullptr, mu, nullptr}, threads);
}

template <class T>
void interpolate_reduce_primal(const Activation& act, const Path& path, const T* kept, const T* a_v, const T* nu_v,
                               const T* nu_0, const T* t, T* m, int threads) {
  if (is_flat(act)) a_v = nu_v = nullptr;
  launch(Reduce<T>{act, Scalars<T>(act), path, kept, a_v, nu_v, nu_0, t, m, m + path.elements}, threads);
}

#define FASTXAI_INSTANTIATE(T)                                                                                     \
  template void interpolate_push(const Activation&, const Path&, const T*, const Bias<T>&, const T*, T*, T*, int); \
  template void interpolate_tangent(const Activation&, const Path&, const T*, const T*, T*, int);                  \
  template void interpolate_reduce(const Activation&, const Path&, const T*, const T*, T*, int);                   \
  template void interpolate_reduce_primal(const Activation&, const Path&, const T*, const T*, const T*, const T*,  \
                                          const T*, T*, int);
FASTXAI_INSTANTIATE(float)
FASTXAI_INSTANTIATE(double)

}  // namespace fastxai::cpu

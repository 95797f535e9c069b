// As in activation.cpp a block stays in the first-level cache: the derivatives are computed once per block, the sums over
// the directions grow in it, and each operand crosses memory once. Floor, in components: push reads 2 + 2 S and writes
// 1 + S, pull reads 4 + 4 S and writes 1 + S.
#include "mixed.h"

#include <algorithm>

#include "parallel.h"

namespace fastxai::cpu {
namespace {

constexpr int64_t block = 512;
// Waking the team costs 2 us.
constexpr int64_t serial = 1 << 14;

int useful(int threads, const Mixed& s) { return s.elements * (1 + s.directions) < serial ? 1 : threads; }

template <class T>
struct Push {
  const Activation& act;
  Scalars<T> scalars;
  Mixed shape;
  const T *kept, *a_v, *a;
  T* y;
};

template <class T>
FASTXAI_INLINE void run(const Push<T>& p, int64_t begin, int64_t end) {
  const Scalars<T> c = p.scalars;
  visit(p.act, [&](auto choice) __attribute__((always_inline)) {
    using C = decltype(choice);
    alignas(64) T d1[block], d2[block], bent[block];
    for (int64_t start = begin; start < end; start += block) {
      const int64_t n = std::min(block, end - start);
      const T *kept = p.kept + start, *a_w = p.a + start;
      FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) {
        const Jet<T> jet = recall<C::code, C::surrogate>(kept[i], c);
        d1[i] = jet.d1;
        d2[i] = jet.d2;
        bent[i] = 0;
      }
      for (int64_t s = 0; s < p.shape.directions; ++s) {
        const T* a_v = p.a_v + s * p.shape.elements + start;
        const T* a_u = p.a + (1 + s) * p.shape.elements + start;
        T* y_u = p.y + (1 + s) * p.shape.elements + start;
        FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) {
          bent[i] += a_u[i] * a_v[i];
          y_u[i] = d1[i] * a_u[i];
        }
      }
      T* y_w = p.y + start;
      FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) y_w[i] = d1[i] * a_w[i] + d2[i] * bent[i];
    }
  });
}

template <class T>
struct Pull {
  const Activation& act;
  Scalars<T> scalars;
  Mixed shape;
  const T *kept, *a_v, *a, *nu, *bar;
  T* mu;
};

template <class T>
FASTXAI_INLINE void run(const Pull<T>& p, int64_t begin, int64_t end) {
  const Scalars<T> c = p.scalars;
  visit(p.act, [&](auto choice) __attribute__((always_inline)) {
    using C = decltype(choice);
    // of nu_v: times s'' and times s'''; sum: all of mu_0 that comes of the directions
    alignas(64) T d1[block], d2[block], once[block], twice[block], sum[block];
    for (int64_t start = begin; start < end; start += block) {
      const int64_t n = std::min(block, end - start);
      const T *kept = p.kept + start, *a_w = p.a + start, *nu_v = p.nu + start, *nu_0 = p.bar + start;
      FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) {
        const Jet<T> jet = recall<C::code, C::surrogate>(kept[i], c);
        d1[i] = jet.d1;
        d2[i] = jet.d2;
        once[i] = jet.d2 * nu_v[i];
        twice[i] = jet.d3 * nu_v[i];
        sum[i] = 0;
      }
      for (int64_t s = 0; s < p.shape.directions; ++s) {
        const int64_t at = (1 + s) * p.shape.elements + start;
        const T *a_v = p.a_v + at - p.shape.elements, *a_u = p.a + at, *start_nu = p.nu + at, *bar_v = p.bar + at;
        T* mu_v = p.mu + at;
        FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) {
          sum[i] += d2[i] * (a_u[i] * start_nu[i] + a_v[i] * bar_v[i]) + twice[i] * (a_u[i] * a_v[i]);
          mu_v[i] = d1[i] * bar_v[i] + once[i] * a_u[i];
        }
      }
      T* mu_0 = p.mu + start;
      FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) mu_0[i] = d1[i] * nu_0[i] + once[i] * a_w[i] + sum[i];
    }
  });
}

FASTXAI_CLONES void clone(const Push<float>& p, int64_t begin, int64_t end) { run(p, begin, end); }
FASTXAI_CLONES void clone(const Push<double>& p, int64_t begin, int64_t end) { run(p, begin, end); }
FASTXAI_CLONES void clone(const Pull<float>& p, int64_t begin, int64_t end) { run(p, begin, end); }
FASTXAI_CLONES void clone(const Pull<double>& p, int64_t begin, int64_t end) { run(p, begin, end); }

template <class Work>
void over_blocks(const Work& p, int threads) {
  parallel_for(p.shape.elements, block, useful(threads, p.shape),
               [&](int64_t begin, int64_t end) { clone(p, begin, end); });
}

}  // namespace

template <class T>
void mixed_push(const Activation& act, const Mixed& shape, const T* kept, const T* a_v, const T* a, T* y, int threads) {
  over_blocks(Push<T>{act, Scalars<T>(act), shape, kept, a_v, a, y}, threads);
}

template <class T>
void mixed_pull(const Activation& act, const Mixed& shape, const T* kept, const T* a_v, const T* a, const T* nu,
                const T* bar, T* mu, int threads) {
  over_blocks(Pull<T>{act, Scalars<T>(act), shape, kept, a_v, a, nu, bar, mu}, threads);
}

#define FASTXAI_INSTANTIATE(T)                                                                                     \
  template void mixed_push(const Activation&, const Mixed&, const T*, const T*, const T*, T*, int);                 \
  template void mixed_pull(const Activation&, const Mixed&, const T*, const T*, const T*, const T*, const T*, T*, int);
FASTXAI_INSTANTIATE(float)
FASTXAI_INSTANTIATE(double)

}  // namespace fastxai::cpu

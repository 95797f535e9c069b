// A block of elements is small enough to stay in the first-level cache: s' and s'' are computed once per block and used
// for every direction, and each operand crosses memory once.
#include "activation.h"

#include <algorithm>
#include <vector>

#include "bias.h"
#include "parallel.h"

namespace fastxai::cpu {
namespace {

constexpr int64_t block = 512;
// Waking the team costs 2 us; this many elements take one core 10 us for softplus, 3 us for ReLU.
constexpr int64_t serial = 1 << 14;

int useful(int threads, const Shape& s) { return s.elements * (1 + s.directions) < serial ? 1 : threads; }

template <class T>
struct Push {
  const Activation& act;
  Scalars<T> scalars;
  Shape shape;
  Bias<T> bias;
  const T* a;
  T *y, *kept;
};

template <class T>
FASTXAI_INLINE void push_range(const Push<T>& p, int64_t begin, int64_t end) {
  const Scalars<T> c = p.scalars;
  visit(p.act, [&](auto choice) __attribute__((always_inline)) {
    constexpr Act act = decltype(choice)::code;
    alignas(64) T d1[block];
    for (int64_t start = begin; start < end; start += block) {
      const int64_t n = std::min(block, end - start);
      const T* a = p.a + start;
      T *y = p.y + start, *kept = p.kept + start;
      if (p.bias.values) {
        add_bias(a, p.bias, start, n, kept);
        a = kept;
      }
      if (p.shape.directions == 0) {
        FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) {
          const Jet<T> jet = evaluate<act, false>(a[i], c);
          y[i] = jet.y;
          kept[i] = jet.kept;
        }
        continue;
      }
      FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) {
        const Jet<T> jet = evaluate<act, false>(a[i], c);
        y[i] = jet.y;
        kept[i] = jet.kept;
        d1[i] = jet.d1;
      }
      for (int64_t s = 1; s <= p.shape.directions; ++s) {
        const T* a_v = p.a + s * p.shape.elements + start;
        T* y_v = p.y + s * p.shape.elements + start;
        FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) y_v[i] = d1[i] * a_v[i];
      }
    }
  });
}

// Both pulls: mu_v is null where only mu_0 is wanted, nu_0 is null where it is zero.
template <class T>
struct Pull {
  const Activation& act;
  Scalars<T> scalars;
  Shape shape;
  const T *kept, *a_v, *nu_v, *nu_0;
  T *mu_v, *mu_0;
};

template <class T>
FASTXAI_INLINE void pull_range(const Pull<T>& p, int64_t begin, int64_t end) {
  const Scalars<T> c = p.scalars;
  const bool flat = is_flat(p.act);
  visit(p.act, [&](auto choice) __attribute__((always_inline)) {
    using C = decltype(choice);
    alignas(64) T d1[block], d2[block];
    for (int64_t start = begin; start < end; start += block) {
      const int64_t n = std::min(block, end - start);
      const T *kept = p.kept + start, *nu_v = p.nu_v + start;
      T* mu_v = p.mu_v ? p.mu_v + start : nullptr;
      if (p.shape.directions == 0) {
        FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) {
          mu_v[i] = recall<C::code, C::surrogate>(kept[i], c).d1 * nu_v[i];
        }
        continue;
      }
      FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) {
        const Jet<T> jet = recall<C::code, C::surrogate>(kept[i], c);
        d1[i] = jet.d1;
        d2[i] = jet.d2 * nu_v[i];
      }
      for (int64_t s = 0; s < p.shape.directions; ++s) {
        const int64_t at = s * p.shape.elements + start;
        const T *a_v = flat ? nullptr : p.a_v + at, *nu_0 = p.nu_0 ? p.nu_0 + at : nullptr;
        T* mu_0 = p.mu_0 + at;
        if (flat && !nu_0) {
          std::fill_n(mu_0, n, T(0));
        } else if (flat) {
          FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) mu_0[i] = d1[i] * nu_0[i];
        } else if (!nu_0) {
          FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) mu_0[i] = d2[i] * a_v[i];
        } else {
          FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) mu_0[i] = d1[i] * nu_0[i] + d2[i] * a_v[i];
        }
      }
      if (mu_v) {
        FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) mu_v[i] = d1[i] * nu_v[i];
      }
    }
  });
}

FASTXAI_CLONES void push_clone(const Push<float>& p, int64_t begin, int64_t end) { push_range(p, begin, end); }
FASTXAI_CLONES void push_clone(const Push<double>& p, int64_t begin, int64_t end) { push_range(p, begin, end); }
FASTXAI_CLONES void pull_clone(const Pull<float>& p, int64_t begin, int64_t end) { pull_range(p, begin, end); }
FASTXAI_CLONES void pull_clone(const Pull<double>& p, int64_t begin, int64_t end) { pull_range(p, begin, end); }

}  // namespace

template <class T>
void activation_push(const Activation& act, const Shape& shape, const T* a, const T* bias, T* y, T* kept, int threads) {
  if (shape.elements == 0) return;  // inner may be 0 too
  std::vector<T> pattern;
  const Bias<T> spelled = spelled_out<T>({bias, shape.channels, shape.inner}, block, pattern);
  const Push<T> p{act, Scalars<T>(act), shape, spelled, a, y, kept};
  parallel_for(shape.elements, block, useful(threads, shape),
               [&](int64_t begin, int64_t end) { push_clone(p, begin, end); });
}

template <class T>
void activation_pull(const Activation& act, const Shape& shape, const T* kept, const T* a_v, const T* nu, T* mu,
                     int threads) {
  const Pull<T> p{act, Scalars<T>(act), shape, kept, a_v, nu, nu + shape.elements, mu, mu + shape.elements};
  parallel_for(shape.elements, block, useful(threads, shape),
               [&](int64_t begin, int64_t end) { pull_clone(p, begin, end); });
}

template <class T>
void activation_pull_primal(const Activation& act, const Shape& shape, const T* kept, const T* a_v, const T* nu_v,
                            const T* nu_0, T* mu, int threads) {
  const Pull<T> p{act, Scalars<T>(act), shape, kept, a_v, nu_v, nu_0, nullptr, mu};
  parallel_for(shape.elements, block, useful(threads, shape),
               [&](int64_t begin, int64_t end) { pull_clone(p, begin, end); });
}

#define FASTXAI_INSTANTIATE(T)                                                                                      \
  template void activation_push(const Activation&, const Shape&, const T*, const T*, T*, T*, int);                  \
  template void activation_pull(const Activation&, const Shape&, const T*, const T*, const T*, T*, int);            \
  template void activation_pull_primal(const Activation&, const Shape&, const T*, const T*, const T*, const T*, T*, \
                                       int);
FASTXAI_INSTANTIATE(float)
FASTXAI_INSTANTIATE(double)

}  // namespace fastxai::cpu

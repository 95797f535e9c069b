// One pass over memory for steps whose elements do not meet; l2 reads each sample once for every norm, from cache where
// it fits, and a sample is summed by one thread in one order.
#include "attack_step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../math.h"
#include "bias.h"
#include "parallel.h"

namespace fastxai::cpu {
namespace {

constexpr int64_t grain = 2048;
// Waking the team costs 2 us, this many elements of Adam some 10.
constexpr int64_t serial = 1 << 14;
constexpr int64_t lanes = 16;

template <class T>
struct Work {
  Images<T> images;
  // The bounds, spelled out where runs of one channel are short.
  Bias<T> low, high;

  int useful(int threads) const { return images.samples * images.elements < serial ? 1 : threads; }
};

template <class T>
FASTXAI_INLINE T clipped(T value, T low, T high) {
  return value < low ? low : value > high ? high : value;
}

// out = clip(move(i)) for elements [start, start + n) of a sample, i counting from 0.
template <class T, class F>
FASTXAI_INLINE void clip_run(const Work<T>& w, int64_t start, int64_t n, T* out, const F& move) {
  const int64_t inner = w.low.inner, channels = w.low.channels;
  int64_t channel = start / inner % channels, offset = start % inner;
  for (int64_t i = 0; i < n;) {
    const int64_t run = std::min(n - i, inner == 1 ? channels - channel : inner - offset);
    const T *low = w.low.values + channel, *high = w.high.values + channel;
    if (inner == 1) {
      FASTXAI_VECTOR for (int64_t j = 0; j < run; ++j) out[i + j] = clipped(move(i + j), low[j], high[j]);
    } else {
      const T lo = *low, hi = *high;
      FASTXAI_VECTOR for (int64_t j = 0; j < run; ++j) out[i + j] = clipped(move(i + j), lo, hi);
    }
    i += run;
    offset = 0;
    channel = inner == 1 || channel + 1 == channels ? 0 : channel + 1;
  }
}

// f(first element, its number within the sample, count) for each sample's part of [begin, end) that is not frozen.
template <class T, class F>
FASTXAI_INLINE void each_part(const Work<T>& w, const T* x, T* out, int64_t begin, int64_t end, const F& f) {
  for (int64_t at = begin; at < end;) {
    const int64_t sample = at / w.images.elements, inside = at % w.images.elements;
    const int64_t n = std::min(end - at, w.images.elements - inside);
    if (w.images.frozen && w.images.frozen[sample]) {
      std::copy_n(x + at, n, out + at);
    } else {
      f(at, inside, n);
    }
    at += n;
  }
}

template <class T>
struct AdamStep {
  Work<T> work;
  T beta_1, rest_1, beta_2, rest_2, eps, size, correction;
  const T *x, *gradient;
  T *m, *v, *out;
};

template <class T>
FASTXAI_INLINE void run(const AdamStep<T>& p, int64_t begin, int64_t end) {
  const AdamStep<T> c = p;
  each_part(c.work, c.x, c.out, begin, end, [&](int64_t at, int64_t inside, int64_t n) __attribute__((always_inline)) {
    const T *x = c.x + at, *gradient = c.gradient + at;
    T *m = c.m + at, *v = c.v + at;
    clip_run(c.work, inside, n, c.out + at, [=](int64_t i) __attribute__((always_inline)) {
      const T g = gradient[i];
      const T mean = c.beta_1 * m[i] + c.rest_1 * g;
      const T square = c.beta_2 * v[i] + c.rest_2 * (g * g);
      m[i] = mean;
      v[i] = square;
      return x[i] - c.size * mean / (std::sqrt(square) * c.correction + c.eps);
    });
  });
}

template <class T>
struct Project {
  Work<T> work;
  T alpha, eps;
  const T *x, *gradient, *origin;
  T* out;
};

template <class T>
struct SignStep : Project<T> {};

// origin + eps, or where that was rounded to outside of the ball, a number or two before it.
template <class T>
FASTXAI_INLINE T ball_end(T origin, T eps) {
  const T end = origin + eps, before = end - std::abs(end) * std::numeric_limits<T>::epsilon();
  return end - origin > eps ? std::max(before, origin) : end;
}

template <class T>
FASTXAI_INLINE T within(T value, T origin, T eps) {
  return clipped(value, -ball_end(-origin, eps), ball_end(origin, eps));
}

template <class T>
FASTXAI_INLINE void run(const SignStep<T>& c, int64_t begin, int64_t end) {
  const T alpha = c.alpha, eps = c.eps;
  each_part(c.work, c.x, c.out, begin, end, [&](int64_t at, int64_t inside, int64_t n) __attribute__((always_inline)) {
    const T *x = c.x + at, *origin = c.origin + at;
    if (c.gradient) {
      const T* gradient = c.gradient + at;
      clip_run(c.work, inside, n, c.out + at, [=](int64_t i) __attribute__((always_inline)) {
        const T g = gradient[i], sign = T(g > 0) - T(g < 0);
        return within(x[i] + alpha * sign, origin[i], eps);
      });
    } else {
      clip_run(c.work, inside, n, c.out + at, [=](int64_t i) __attribute__((always_inline)) {
        return within(x[i], origin[i], eps);
      });
    }
  });
}

// The length of a vector, scaled by its largest element, so that squares neither vanish nor overflow.
template <class T, class F>
FASTXAI_INLINE T length(int64_t n, const F& element) {
  alignas(64) T most[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    FASTXAI_VECTOR for (int64_t l = 0; l < lanes; ++l) {
      const T size = std::abs(element(i + l));
      most[l] = size > most[l] ? size : most[l];
    }
  }
  for (; i < n; ++i) most[0] = std::max(most[0], std::abs(element(i)));
  T scale = *std::max_element(most, most + lanes);
  if (!(scale > 0) || scale > std::numeric_limits<T>::max()) scale = 1;
  alignas(64) double sums[lanes] = {};
  for (i = 0; i + lanes <= n; i += lanes) {
    FASTXAI_VECTOR for (int64_t l = 0; l < lanes; ++l) {
      const double part = element(i + l) / scale;
      sums[l] += part * part;
    }
  }
  for (; i < n; ++i) {
    const double part = element(i) / scale;
    sums[0] += part * part;
  }
  double total = 0;
  for (double sum : sums) total += sum;
  return T(std::sqrt(total) * double(scale));
}

template <class T>
struct L2Step : Project<T> {};

// begin, end: samples.
template <class T>
FASTXAI_INLINE void run(const L2Step<T>& c, int64_t begin, int64_t end) {
  const int64_t n = c.work.images.elements;
  for (int64_t sample = begin; sample < end; ++sample) {
    const T *x = c.x + sample * n, *origin = c.origin + sample * n;
    T* out = c.out + sample * n;
    if (c.work.images.frozen && c.work.images.frozen[sample]) {
      std::copy_n(x, n, out);
      continue;
    }
    if (c.gradient) {
      const T* gradient = c.gradient + sample * n;
      const T size = length<T>(n, [=](int64_t i) __attribute__((always_inline)) { return gradient[i]; });
      const T scale = size == 0 ? T(0) : c.alpha / size;
      FASTXAI_VECTOR for (int64_t i = 0; i < n; ++i) out[i] = x[i] + scale * gradient[i];
      x = out;
    }
    const T size = length<T>(n, [=](int64_t i) __attribute__((always_inline)) { return x[i] - origin[i]; });
    if (size > c.eps) {
      const T scale = c.eps / size;
      clip_run(c.work, 0, n, out,
               [=](int64_t i) __attribute__((always_inline)) { return origin[i] + scale * (x[i] - origin[i]); });
    } else {
      clip_run(c.work, 0, n, out, [=](int64_t i) __attribute__((always_inline)) { return x[i]; });
    }
  }
}

#define FASTXAI_CLONE(Step)                                                                            \
  FASTXAI_CLONES void clone(const Step<float>& p, int64_t begin, int64_t end) { run(p, begin, end); }  \
  FASTXAI_CLONES void clone(const Step<double>& p, int64_t begin, int64_t end) { run(p, begin, end); }
FASTXAI_CLONE(AdamStep)
FASTXAI_CLONE(SignStep)
FASTXAI_CLONE(L2Step)
#undef FASTXAI_CLONE

// Both bounds with the memory that spells them out.
template <class T>
struct Bounds {
  std::vector<T> lows, highs;
  Work<T> work;

  explicit Bounds(const Images<T>& s)
      : work{s, spelled_out<T>({s.low, s.channels, s.inner}, grain, lows),
             spelled_out<T>({s.high, s.channels, s.inner}, grain, highs)} {}
};

bool empty(int64_t samples, int64_t elements) { return samples == 0 || elements == 0; }

}  // namespace

template <class T>
void attack_step_adam(const Images<T>& images, const Adam& adam, const T* x, const T* gradient, T* m, T* v, T* out,
                      int threads) {
  if (empty(images.samples, images.elements)) return;
  const Bounds<T> bounds(images);
  const AdamStep<T> p{bounds.work, T(adam.beta_1), T(1 - adam.beta_1), T(adam.beta_2), T(1 - adam.beta_2), T(adam.eps),
                      T(adam.size), T(adam.correction), x, gradient, m, v, out};
  parallel_for(images.samples * images.elements, grain, bounds.work.useful(threads),
               [&](int64_t begin, int64_t end) { clone(p, begin, end); });
}

template <class T>
void attack_step_sign(const Images<T>& images, double alpha, double eps, const T* x, const T* gradient,
                      const T* origin, T* out, int threads) {
  if (empty(images.samples, images.elements)) return;
  const Bounds<T> bounds(images);
  const SignStep<T> p{{bounds.work, T(alpha), T(eps), x, gradient, origin, out}};
  parallel_for(images.samples * images.elements, grain, bounds.work.useful(threads),
               [&](int64_t begin, int64_t end) { clone(p, begin, end); });
}

template <class T>
void attack_step_l2(const Images<T>& images, double alpha, double eps, const T* x, const T* gradient, const T* origin,
                    T* out, int threads) {
  if (empty(images.samples, images.elements)) return;
  const Bounds<T> bounds(images);
  const L2Step<T> p{{bounds.work, T(alpha), T(eps), x, gradient, origin, out}};
  parallel_for(images.samples, 1, bounds.work.useful(threads),
               [&](int64_t begin, int64_t end) { clone(p, begin, end); });
}

#define FASTXAI_INSTANTIATE(T)                                                                                    \
  template void attack_step_adam(const Images<T>&, const Adam&, const T*, const T*, T*, T*, T*, int);             \
  template void attack_step_sign(const Images<T>&, double, double, const T*, const T*, const T*, T*, int);        \
  template void attack_step_l2(const Images<T>&, double, double, const T*, const T*, const T*, T*, int);
FASTXAI_INSTANTIATE(float)
FASTXAI_INSTANTIATE(double)

}  // namespace fastxai::cpu

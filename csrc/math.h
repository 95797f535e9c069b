// Scalar formulas of the activations: value, kept number, s', s'', s'''. Host and device; the only C++ copy of each.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

// Everything must inline into its loop: a call would neither vectorise nor take the instruction set of its clone.
#if defined(__GNUC__) && !defined(__CUDACC__)
#define FASTXAI_HOST_INLINE inline __attribute__((always_inline))
#else
#define FASTXAI_HOST_INLINE inline
#endif
#if defined(__CUDACC__)
#define FASTXAI_INLINE __host__ __device__ inline
#else
#define FASTXAI_INLINE FASTXAI_HOST_INLINE
#endif

namespace fastxai {

// The order is that of NAMES and SECOND in fastxai/kernels/formulas.py; a test compares the two.
enum class Act : int {
  identity, softplus, sigmoid, tanh, silu, gelu, gelu_tanh, elu, relu, relu6, leaky_relu, softplus6, leaky_softplus
};
constexpr const char* act_names[] = {"identity", "softplus", "sigmoid", "tanh",       "silu",      "gelu",          "gelu_tanh",
                                     "elu",      "relu",     "relu6",   "leaky_relu", "softplus6", "leaky_softplus"};
enum class Second : int { own, curvature, none };

// What Python passes: one activation, without a dtype.
struct Activation {
  int code = 0;
  int second = 0;
  double beta = 1;
  double alpha = 0;
};

template <class T>
struct Float;
template <>
struct Float<float> {
  using Bits = uint32_t;
  static constexpr Bits sign = 0x80000000u;
  static constexpr Bits head = 0xfffff000u;  // keeps 12 of the 24 significant bits
  static constexpr int digits = 23;
  // Adding it to n leaves n + 151 in the low bits: the exponent field of 2^(n + 24), normal for all n >= -150.
  static constexpr float round = 0x1.8p23f + 151;
  static constexpr float lowered = 0x1p-24f;
  static constexpr double least = 150.45;  // 2^-150.45 rounds to zero
};
template <>
struct Float<double> {
  using Bits = uint64_t;
  static constexpr Bits sign = 0x8000000000000000u;
  static constexpr Bits head = 0xfffffffff8000000u;  // keeps 26 of the 53 significant bits
  static constexpr int digits = 52;
  static constexpr double round = 0x1.8p52 + 1076;  // n + 1076 is the exponent field of 2^(n + 53)
  static constexpr double lowered = 0x1p-53;
  static constexpr double least = 1075.45;
};

template <class T>
FASTXAI_INLINE typename Float<T>::Bits bits_of(T x) {
  typename Float<T>::Bits b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}

template <class T>
FASTXAI_INLINE T from_bits(typename Float<T>::Bits b) {
  T x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}

// The leading half of the significand: products of two heads are exact.
template <class T>
FASTXAI_INLINE T head(T x) {
  return from_bits<T>(bits_of(x) & Float<T>::head);
}

// The rate r of exp(r x) in base 2: r log2(e) = hi + lo beyond the precision of T, hi a head.
template <class T>
struct Rate {
  T sum, hi, lo, floor;  // exp(r x) = 0 for x < floor

  explicit Rate(double r) {
    constexpr double log2e = 0x1.71547652b82fep0, rest = 0x1.777d0ffda0d24p-56;
    constexpr double large = std::numeric_limits<T>::max() / 4;
    const double product = std::min(r * log2e, large);
    const double error = product < large ? std::fma(r, log2e, -product) + r * rest : 0;
    sum = T(product);
    hi = head(sum);
    lo = T((product - double(hi)) + error);
    floor = T(-std::min(Float<T>::least / product, large));
  }
};

// All that a formula needs beside its argument, prepared once per call.
template <class T>
struct Scalars {
  T beta, inverse, alpha;
  Rate<T> unit, rate;

  explicit Scalars(const Activation& act)
      : beta(T(act.beta)), inverse(T(1 / act.beta)), alpha(T(act.alpha)), unit(1), rate(act.beta) {}
};

template <class T>
FASTXAI_INLINE T horner(T, T c) {
  return c;
}
template <class T, class... Rest>
FASTXAI_INLINE T horner(T x, T c, Rest... rest) {
  return c + x * horner(x, T(rest)...);
}

// num / den for den in [1, 2].
template <class T>
FASTXAI_INLINE T ratio(T num, T den) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, float>) return __fdividef(num, den);
#endif
  return num / den;
}

// exp(r x) = (1 + tail) raised lowered, so that exp and exp - 1 are both at hand. raised is a normal power of two even
// where the result is not: only the last product rounds.
template <class T>
struct Power {
  T tail, raised;
  FASTXAI_INLINE T exp() const { return ((1 + tail) * raised) * Float<T>::lowered; }
  FASTXAI_INLINE T minus_one() const {
    const T scale = raised * Float<T>::lowered;
    return scale * tail + (scale - 1);
  }
};

// exp(r x - less ln 2) for x <= 0, at most 2 ulp, with gradual underflow; NaN passes. r x is never rounded: at
// r x = -88 the rounding alone would cost 44 ulp. Works without FMA, so that every clone gives nearly the same bits.
template <class T>
FASTXAI_INLINE Power<T> power(T x, const Rate<T>& r, T less = T(0)) {
  using F = Float<T>;
  x = x < r.floor ? r.floor : x;
  const T shifted = r.sum * x + F::round;
  const T n = shifted - F::round;
  const T h = head(x);
  const T f = (((h * r.hi - n) + (x - h) * r.hi) + x * r.lo) - less;
  Power<T> out;
  out.raised = from_bits<T>(bits_of(shifted) << F::digits);
  if constexpr (std::is_same_v<T, float>) {
    out.tail = f * horner(f, 0x1.62e43p-1f, 0x1.ebfbep-3f, 0x1.c6af6cp-5f, 0x1.3b2a52p-7f, 0x1.5f08b8p-10f,
                          0x1.4413a4p-13f);
  } else {
    out.tail = f * horner(f, 0x1.62e42fefa39efp-1, 0x1.ebfbdff82c598p-3, 0x1.c6b08d704a0c2p-5, 0x1.3b2ab6fba1dc6p-7,
                          0x1.5d87fe78a526dp-10, 0x1.4309130975155p-13, 0x1.ffcbfc6712438p-17, 0x1.62bfd46781ef6p-20,
                          0x1.b524fad88ed30p-24, 0x1.e6065f532c950p-28, 0x1.e9d419696e0e9p-32);
  }
  return out;
}

// log(1 + x) for x in [0, 1], at most 2 ulp: 2 atanh(s / 2) with s = x / (1 + x/2).
template <class T>
FASTXAI_INLINE T log1p(T x) {
  const T s = ratio(x, 1 + x / 2), w = s * s;
  T series;
  if constexpr (std::is_same_v<T, float>) {
    series = horner(w, 0x1.555556p-4f, 0x1.9998d4p-7f, 0x1.24c926p-9f, 0x1.bc8cf6p-12f, 0x1.dba27p-14f);
  } else {
    series = horner(w, 0x1.5555555555555p-4, 0x1.9999999999944p-7, 0x1.2492492499d47p-9, 0x1.c71c71bede9efp-12,
                    0x1.745d19937db4dp-14, 0x1.3b13515f126a6p-16, 0x1.111abdd0a209ep-18, 0x1.e0a2d4ab11508p-21,
                    0x1.bc37f6e16958bp-23, 0x1.32e0b3e74af11p-25, 0x1.401d5b4b567d6p-26);
  }
  return s + s * (w * series);
}

template <class T>
FASTXAI_INLINE T absolute(T x) {
  return from_bits<T>(bits_of(x) & ~Float<T>::sign);
}

template <class T>
FASTXAI_INLINE T minus_absolute(T x) {
  return from_bits<T>(bits_of(x) | Float<T>::sign);
}

template <class T>
FASTXAI_INLINE bool negative(T x) {
  return bits_of(x) >= Float<T>::sign;
}

template <class T>
FASTXAI_INLINE T with_sign(T magnitude, T sign) {
  return from_bits<T>((bits_of(magnitude) & ~Float<T>::sign) | (bits_of(sign) & Float<T>::sign));
}

// max(a, 0), passing NaN.
template <class T>
FASTXAI_INLINE T positive_part(T a) {
  return a < 0 ? T(0) : a;
}

// Of p = sig(r x): q = min(p, 1 - p) and t = tanh(|r x| / 2) = |2 p - 1|, neither by cancellation.
template <class T>
struct Logistic {
  T q, t;
  FASTXAI_INLINE Logistic(T x, const Rate<T>& rate) {
    const Power<T> e = power(minus_absolute(x), rate);
    const T num = e.exp(), inverse = ratio(T(1), 1 + num);
    q = num * inverse;
    t = -e.minus_one() * inverse;
  }
  FASTXAI_INLINE T slope() const { return q * (1 - q); }
};

template <class T>
struct Jet {
  T y, kept, d1, d2, d3;
};

// beta^2 p(1-p)(1-2p) from q = min(p, 1-p) and the sign of a.
template <class T>
FASTXAI_INLINE T softplus_third(T q, T a, const Scalars<T>& c) {
  const T size = c.beta * c.beta * (q * (1 - q)) * (1 - 2 * q);
  return negative(a) ? size : -size;
}

// s, the kept number, s', s'' and s''' at the pre-activation a; s''' is zero where s'' jumps or is a surrogate. What the
// caller does not read, the compiler drops.
template <Act act, bool curvature, class T>
FASTXAI_INLINE Jet<T> evaluate(T a, const Scalars<T>& c) {
  Jet<T> out{a, a, T(1), T(0), T(0)};
  if constexpr (act == Act::softplus) {
    const T e = power(minus_absolute(a), c.rate).exp();
    const T q = ratio(e, 1 + e);
    out.y = positive_part(a) + log1p(e) * c.inverse;
    out.kept = with_sign(q, a);
    out.d1 = negative(a) ? q : 1 - q;
    out.d2 = c.beta * (q * (1 - q));
    out.d3 = softplus_third(q, a, c);
  } else if constexpr (act == Act::sigmoid) {
    const Logistic<T> p(a, c.unit);
    out.y = negative(a) ? p.q : 1 - p.q;
    out.d1 = p.slope();
    out.d2 = -out.d1 * with_sign(p.t, a);
    out.d3 = out.d1 * (1 - 6 * out.d1);
  } else if constexpr (act == Act::tanh) {
    const Logistic<T> p(2 * a, c.unit);
    out.y = with_sign(p.t, a);
    out.d1 = 4 * p.slope();
    out.d2 = -2 * out.y * out.d1;
    out.d3 = out.d1 * (4 - 6 * out.d1);
  } else if constexpr (act == Act::silu) {
    const Logistic<T> p(a, c.unit);
    const T sig = negative(a) ? p.q : 1 - p.q;
    out.y = a * sig;
    out.d1 = sig + a * p.slope();
    out.d2 = p.slope() * (2 - absolute(a) * p.t);
    out.d3 = p.slope() * (a * (1 - 6 * p.slope()) - 3 * with_sign(p.t, a));
  } else if constexpr (act == Act::gelu) {
    // a^2 = h^2 + (a - h)(a + h), the second part entering the exponent beyond the precision of T; it is far below 1
    // wherever the density is not zero.
    const T h = head(a), beyond = (a - h) * (a + h), rest = beyond < 1 ? beyond : T(0);
    const T density = T(0.3989422804014327) * power(-h * h / 2, c.unit, rest * (c.unit.sum / 2)).exp();
    const T cdf = std::erfc(a * T(-0.7071067811865476)) / 2;
    out.y = a * cdf;
    out.d1 = cdf + a * density;
    out.d2 = density * (2 - a * a);
    out.d3 = density * a * (a * a - 4);
  } else if constexpr (act == Act::gelu_tanh) {
    const T k1 = T(0.7978845608028654), k3 = T(0.7978845608028654 * 0.044715);
    const T u = a * (k1 + k3 * (a * a)), du = k1 + 3 * k3 * (a * a), ddu = 6 * k3 * a;
    const Logistic<T> p(2 * u, c.unit);
    const T sig = negative(u) ? p.q : 1 - p.q, dt = 4 * p.slope();
    out.y = a * sig;
    out.d1 = sig + a * dt * du / 2;
    out.d2 = dt * du + a * dt * (ddu / 2 - with_sign(p.t, u) * du * du);
    const T t = with_sign(p.t, u), bend = ddu - 2 * t * du * du;
    out.d3 = p.slope() * (6 * bend + a * (12 * k3 - 12 * t * du * ddu + du * du * du * (8 - 48 * p.slope())));
  } else if constexpr (act == Act::elu) {
    const Power<T> e = power(a > 0 ? T(0) : a, c.unit);
    const T low = c.alpha * e.exp();
    out.y = a > 0 ? a : c.alpha * e.minus_one();
    out.d1 = a > 0 ? T(1) : low;
    out.d2 = a > 0 ? T(0) : low;
    out.d3 = out.d2;
  } else if constexpr (act == Act::softplus6) {
    // softplus(a) - softplus(a - 6): the kinked parts subtract to a clamp, exactly
    const T below = power(minus_absolute(a), c.rate).exp(), above = power(minus_absolute(a - 6), c.rate).exp();
    const T low = ratio(below, 1 + below), high = ratio(above, 1 + above);
    const T clamped = a > 6 ? T(6) : a;
    out.y = (a < 0 ? T(0) : clamped) + (log1p(below) - log1p(above)) * c.inverse;
    out.d1 = a > 6 ? high - low : (a > 0 ? 1 - low - high : low - high);
    out.d2 = c.beta * (low * (1 - low) - high * (1 - high));
    out.d3 = softplus_third(low, a, c) - softplus_third(high, a - 6, c);
  } else if constexpr (act == Act::leaky_softplus) {
    const T e = power(minus_absolute(a), c.rate).exp(), q = ratio(e, 1 + e), rest = 1 - c.alpha;
    out.y = c.alpha * a + rest * (positive_part(a) + log1p(e) * c.inverse);
    out.d1 = c.alpha + rest * (negative(a) ? q : 1 - q);
    out.d2 = rest * (c.beta * (q * (1 - q)));
    out.d3 = rest * softplus_third(q, a, c);
  } else if constexpr (act == Act::relu || act == Act::relu6 || act == Act::leaky_relu) {
    const T low = act == Act::leaky_relu ? c.alpha : T(0);
    if constexpr (act == Act::leaky_relu) {
      out.y = a > 0 ? a : low * a;
    } else {
      const T top = act == Act::relu6 && a > 6 ? T(6) : a;
      out.y = a < 0 ? T(0) : top;
    }
    const bool inside = act == Act::relu6 ? (a > 0) & (a < 6) : a > 0;
    out.d1 = inside ? T(1) : low;
    if constexpr (curvature) {
      out.d2 = c.beta * Logistic<T>(a, c.rate).slope() * (1 - low);
      if constexpr (act == Act::relu6) out.d2 -= c.beta * Logistic<T>(a - 6, c.rate).slope();
    }
  }
  return out;
}

// s', s'' and s''' from the kept number.
template <Act act, bool curvature, class T>
FASTXAI_INLINE Jet<T> recall(T kept, const Scalars<T>& c) {
  if constexpr (act == Act::softplus) {
    const T q = absolute(kept);
    return {kept, kept, negative(kept) ? q : 1 - q, c.beta * (q * (1 - q)), softplus_third(q, kept, c)};
  } else {
    return evaluate<act, curvature>(kept, c);
  }
}

// True if s'' is zero everywhere.
inline bool is_flat(const Activation& act) {
  const bool relu_like = act.code >= int(Act::relu) && act.code <= int(Act::leaky_relu);
  return act.code == int(Act::identity) || (relu_like && act.second != int(Second::curvature));
}

template <Act act, bool curvature = false>
struct Choice {
  static constexpr Act code = act;
  static constexpr bool surrogate = curvature;
};

// Calls f(Choice<act, curvature>{}) for the activation chosen at run time.
template <class F>
FASTXAI_HOST_INLINE void visit(const Activation& act, F&& f) {
  const bool curved = act.second == int(Second::curvature);
  switch (Act(act.code)) {
    case Act::identity: return f(Choice<Act::identity>{});
    case Act::softplus: return f(Choice<Act::softplus>{});
    case Act::sigmoid: return f(Choice<Act::sigmoid>{});
    case Act::tanh: return f(Choice<Act::tanh>{});
    case Act::silu: return f(Choice<Act::silu>{});
    case Act::gelu: return f(Choice<Act::gelu>{});
    case Act::gelu_tanh: return f(Choice<Act::gelu_tanh>{});
    case Act::elu: return f(Choice<Act::elu>{});
    case Act::relu: return curved ? f(Choice<Act::relu, true>{}) : f(Choice<Act::relu>{});
    case Act::relu6: return curved ? f(Choice<Act::relu6, true>{}) : f(Choice<Act::relu6>{});
    case Act::leaky_relu: return curved ? f(Choice<Act::leaky_relu, true>{}) : f(Choice<Act::leaky_relu>{});
    case Act::softplus6: return f(Choice<Act::softplus6>{});
    case Act::leaky_softplus: return f(Choice<Act::leaky_softplus>{});
  }
}

}  // namespace fastxai

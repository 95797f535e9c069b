// Vectors as wide as a register: GCC keeps wider ones in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../math.h"
#include "parallel.h"

// A function compiled for one instruction set, called only where vector_registers() says so.
#ifdef FASTXAI_HAS_CLONES
#define FASTXAI_FOR(processor) __attribute__((target("arch=" processor)))
#else
#define FASTXAI_FOR(processor)
#endif

// A function that is never inlined, and the body of a lambda that always is.
#if defined(__GNUC__) || defined(__clang__)
#define FASTXAI_ALONE __attribute__((noinline))
#define FASTXAI_BODY __attribute__((always_inline))
#else
#define FASTXAI_ALONE
#define FASTXAI_BODY
#endif

namespace fastxai::cpu {

// How many vector registers the products may count on: 32 or 16, or 0 where they have not been seen to win.
int vector_registers();

template <int bytes>
struct Floats {
  typedef float Vector __attribute__((vector_size(bytes)));
};

template <class Vector>
constexpr int64_t lanes = sizeof(Vector) / sizeof(float);

template <class Vector>
FASTXAI_INLINE void load(const float* p, Vector& v) {
  std::memcpy(&v, p, sizeof v);
}
template <class Vector>
FASTXAI_INLINE void store(float* p, const Vector& v) {
  std::memcpy(p, &v, sizeof v);
}

// The sum of all lanes, half by half.
template <class Vector>
FASTXAI_INLINE float sum(const Vector& v) {
  if constexpr (lanes<Vector> == 4) {
    return (v[0] + v[2]) + (v[1] + v[3]);
  } else {
    typename Floats<sizeof(Vector) / 2>::Vector half[2];
    std::memcpy(half, &v, sizeof v);
    return sum(half[0] + half[1]);
  }
}

#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
// Sums of 2 * half neighbouring lanes of a, then of b: the lower half of every such block plus the upper one.
template <int half, class Vector, size_t... i>
FASTXAI_INLINE void fold(const Vector& a, const Vector& b, Vector& out, std::index_sequence<i...>) {
  out = __builtin_shufflevector(a, b, (i / half * 2 * half + i % half)...) +
        __builtin_shufflevector(a, b, (i / half * 2 * half + i % half + half)...);
}

// The sums of all lanes of each of `count` vectors, half by half, `width` vectors of them folded to one.
template <int width, class Vector>
FASTXAI_INLINE void fold_all(Vector* v) {
  if constexpr (width > 1) {
    FASTXAI_UNROLL for (int i = 0; i < width / 2; ++i) {
      fold<width / 2>(v[2 * i], v[2 * i + 1], v[i], std::make_index_sequence<lanes<Vector>>{});
    }
    fold_all<width / 2>(v);
  }
}
template <int count, class Vector>
FASTXAI_INLINE void sums(const Vector (&v)[count], float* out) {
  constexpr int width = lanes<Vector>;
  FASTXAI_UNROLL for (int first = 0; first < count; first += width) {
    Vector part[width] = {};
    FASTXAI_UNROLL for (int i = 0; i < width; ++i) {
      if (first + i < count) part[i] = v[first + i];
    }
    fold_all<width>(part);
    std::memcpy(out + first, part, std::min(width, count - first) * sizeof(float));
  }
}
#else
template <int count, class Vector>
FASTXAI_INLINE void sums(const Vector (&v)[count], float* out) {
  for (int i = 0; i < count; ++i) out[i] = sum(v[i]);
}
#endif

}  // namespace fastxai::cpu

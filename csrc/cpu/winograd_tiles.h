// The tiles of Winograd's convolutions: their transforms, and how a block of them lies in memory.
#pragma once

#include <cstdint>

#include "vectors.h"
#include "winograd.h"

namespace fastxai::cpu {

constexpr int64_t step = 16, panel = 32;
// Tiles of a block, a multiple of every kernel's rows. From 12 to 96 all took the same time within 5 %, but for the
// weight gradient of 512 x 512 channels, which goes through all its sums once a block: 20 % more at 24 than at 48.
constexpr int64_t block = 48;
// Floats from one position of a block to the next, rows of `stride` floats in each: an odd number of cache lines, so
// that the positions of a tile fall into sets of the first-level cache of their own.
FASTXAI_INLINE constexpr int64_t apart(int64_t stride) { return block * stride + step; }

// The one-dimensional transforms of kernels of 3 and of 5 pixels, for tiles of two or four outputs.
template <int kernel, int outputs>
struct Scheme;

template <>
struct Scheme<3, 2> {
  static constexpr int64_t side = 4, positions = 16, tile = 2;
  template <class Vector>  // B^T p
  static FASTXAI_INLINE void gather(const Vector (&p)[4], Vector (&d)[4]) {
    d[0] = p[0] - p[2];
    d[1] = p[1] + p[2];
    d[2] = p[2] - p[1];
    d[3] = p[1] - p[3];
  }
  template <class Vector>  // A p
  static FASTXAI_INLINE void spread(const Vector (&p)[2], Vector (&d)[4]) {
    d[0] = p[0];
    d[1] = p[0] + p[1];
    d[2] = p[0] - p[1];
    d[3] = -p[1];
  }
  template <class Vector>  // A^T p
  static FASTXAI_INLINE void scatter(const Vector (&p)[4], Vector (&d)[2]) {
    d[0] = p[0] + p[1] + p[2];
    d[1] = p[1] - p[2] - p[3];
  }
};

// Points 0, 1, -1, -1/2, 2 and infinity. Rows but that of 1 start from differences two apart, or one, so what comes
// from a constant is zero to the last bit.
template <>
struct Scheme<5, 2> {
  static constexpr int64_t side = 6, positions = 36, tile = 2;
  template <class Vector>
  static FASTXAI_INLINE void gather(const Vector (&p)[6], Vector (&d)[6]) {
    const Vector e0 = p[2] - p[0], e1 = p[3] - p[1], e2 = p[4] - p[2], e3 = p[5] - p[3];
    d[0] = e2 - 1.5f * e1 - e0;
    d[1] = (p[4] + p[3]) - 1.5f * (p[3] + p[2]) - (p[2] + p[1]);
    d[2] = (p[4] - p[3]) - 1.5f * (p[3] - p[2]) - (p[2] - p[1]);
    d[3] = e2 - 2.0f * e1;
    d[4] = e2 + 0.5f * e1;
    d[5] = e3 - 1.5f * e2 - e1;
  }
  template <class Vector>
  static FASTXAI_INLINE void spread(const Vector (&p)[2], Vector (&d)[6]) {
    d[0] = p[0];
    d[1] = p[0] + p[1];
    d[2] = p[0] - p[1];
    d[3] = p[0] - 0.5f * p[1];
    d[4] = p[0] + 2.0f * p[1];
    d[5] = p[1];
  }
  template <class Vector>
  static FASTXAI_INLINE void scatter(const Vector (&p)[6], Vector (&d)[2]) {
    d[0] = p[0] + (p[1] + p[2]) + (p[3] + p[4]);
    d[1] = (p[1] - p[2]) - 0.5f * p[3] + 2.0f * p[4] + p[5];
  }
};

// Points 0, +-a, +-b and infinity. The squares and their product are exact.
template <>
struct Scheme<3, 4> {
  static constexpr int64_t side = 6, positions = 36, tile = 4;
  static constexpr float a = 0.625f, b = 1.5f, aa = a * a, bb = b * b;
  template <class Vector>
  static FASTXAI_INLINE void gather(const Vector (&p)[6], Vector (&d)[6]) {
    const Vector even_a = p[4] - bb * p[2], odd_a = a * (p[3] - bb * p[1]);
    const Vector even_b = p[4] - aa * p[2], odd_b = b * (p[3] - aa * p[1]);
    d[0] = aa * bb * p[0] - (aa + bb) * p[2] + p[4];
    d[1] = even_a + odd_a;
    d[2] = even_a - odd_a;
    d[3] = even_b + odd_b;
    d[4] = even_b - odd_b;
    d[5] = aa * bb * p[1] - (aa + bb) * p[3] + p[5];
  }
  template <class Vector>
  static FASTXAI_INLINE void spread(const Vector (&p)[4], Vector (&d)[6]) {
    const Vector even_a = p[0] + aa * p[2], odd_a = a * (p[1] + aa * p[3]);
    const Vector even_b = p[0] + bb * p[2], odd_b = b * (p[1] + bb * p[3]);
    d[0] = p[0];
    d[1] = even_a + odd_a;
    d[2] = even_a - odd_a;
    d[3] = even_b + odd_b;
    d[4] = even_b - odd_b;
    d[5] = p[3];
  }
  template <class Vector>
  static FASTXAI_INLINE void scatter(const Vector (&p)[6], Vector (&d)[4]) {
    const Vector even_a = p[1] + p[2], even_b = p[3] + p[4];
    const Vector odd_a = a * (p[1] - p[2]), odd_b = b * (p[3] - p[4]);
    d[0] = p[0] + even_a + even_b;
    d[1] = odd_a + odd_b;
    d[2] = aa * even_a + bb * even_b;
    d[3] = aa * odd_a + bb * odd_b + p[5];
  }
};

// The tile of a number: its image, and its first output pixel.
struct Tile {
  int64_t image, y, x;
};

FASTXAI_INLINE int64_t tiles_along(int64_t pixels, int64_t side) { return (pixels + side - 1) / side; }

FASTXAI_INLINE Tile tile(const Winograd& c, int64_t number) {
  const int64_t across = tiles_along(c.out_width, c.tile), each = tiles_along(c.out_height, c.tile) * across;
  return {number / each, number % each / across * c.tile, number % across * c.tile};
}

// v[positions][apart]: B^T d B of every tile's pixels d; those outside the image are read from `zeros`.
template <class Scheme, class Vector>
FASTXAI_INLINE void gather(const Winograd& c, const float* source, int64_t first, int64_t count, int64_t stride,
                           const float* zeros, float* v) {
  constexpr int64_t side = Scheme::side;
  for (int64_t t = 0; t < count; ++t) {
    const Tile at = tile(c, first + t);
    const float* image = source + at.image * c.height * c.width * c.channels;
    const float* pixel[side][side];
    for (int64_t i = 0; i < side; ++i) {
      const int64_t y = at.y + i - c.padding_h;
      for (int64_t j = 0; j < side; ++j) {
        const int64_t x = at.x + j - c.padding_w;
        const bool inside = y >= 0 && y < c.height && x >= 0 && x < c.width;
        pixel[i][j] = inside ? image + (y * c.width + x) * c.channels : zeros;
      }
    }
    for (int64_t k = 0; k < c.channels; k += lanes<Vector>) {
      Vector d[side][side];
      FASTXAI_UNROLL for (int64_t j = 0; j < side; ++j) {
        Vector p[side], q[side];
        FASTXAI_UNROLL for (int64_t i = 0; i < side; ++i) load(pixel[i][j] + k, p[i]);
        Scheme::gather(p, q);
        FASTXAI_UNROLL for (int64_t i = 0; i < side; ++i) d[i][j] = q[i];
      }
      float* out = v + t * stride + k;
      FASTXAI_UNROLL for (int64_t i = 0; i < side; ++i) {
        Vector q[side];
        Scheme::gather(d[i], q);
        FASTXAI_UNROLL for (int64_t j = 0; j < side; ++j) store(out + (i * side + j) * apart(stride), q[j]);
      }
    }
  }
}

// The addresses of a tile's output pixels in y or nu, `beyond` for those outside.
template <int64_t side, class Float>
FASTXAI_INLINE void outputs_of(const Winograd& c, const Tile& at, int64_t begin, Float* y, Float* beyond,
                               Float* (&pixel)[side][side]) {
  Float* corner = y + ((at.image * c.out_height + at.y) * c.out_width + at.x) * c.outputs + begin;
  for (int64_t i = 0; i < side; ++i) {
    for (int64_t j = 0; j < side; ++j) {
      const bool inside = at.y + i < c.out_height && at.x + j < c.out_width;
      pixel[i][j] = inside ? corner + (i * c.out_width + j) * c.outputs : beyond;
    }
  }
}

// n[positions][apart]: A nu A^T of `width` outputs of every tile's pixels.
template <class Scheme, class Vector>
FASTXAI_INLINE void spread(const Winograd& c, const float* nu, int64_t first, int64_t count, int64_t begin,
                           int64_t width, const float* zeros, float* n) {
  constexpr int64_t side = Scheme::side, size = Scheme::tile;
  for (int64_t t = 0; t < count; ++t) {
    const float* pixel[size][size];
    outputs_of(c, tile(c, first + t), begin, nu, zeros, pixel);
    for (int64_t k = 0; k < width; k += lanes<Vector>) {
      Vector s[side][size];
      FASTXAI_UNROLL for (int64_t j = 0; j < size; ++j) {
        Vector p[size], q[side];
        FASTXAI_UNROLL for (int64_t i = 0; i < size; ++i) load(pixel[i][j] + k, p[i]);
        Scheme::spread(p, q);
        FASTXAI_UNROLL for (int64_t i = 0; i < side; ++i) s[i][j] = q[i];
      }
      float* out = n + t * panel + k;
      FASTXAI_UNROLL for (int64_t i = 0; i < side; ++i) {
        Vector q[side];
        Scheme::spread(s[i], q);
        FASTXAI_UNROLL for (int64_t j = 0; j < side; ++j) store(out + (i * side + j) * apart(panel), q[j]);
      }
    }
  }
}

// y = A^T m A + b for `width` outputs of every tile; pixels outside y go to `waste`.
template <class Scheme, class Vector>
FASTXAI_INLINE void scatter(const Winograd& c, const float* bias, int64_t first, int64_t count, const float* m,
                            int64_t begin, int64_t width, float* waste, float* y) {
  constexpr int64_t side = Scheme::side, size = Scheme::tile;
  for (int64_t t = 0; t < count; ++t) {
    float* pixel[size][size];
    outputs_of(c, tile(c, first + t), begin, y, waste, pixel);
    for (int64_t k = 0; k < width; k += lanes<Vector>) {
      Vector b = {}, s[size][side];
      if (bias) load(bias + begin + k, b);
      FASTXAI_UNROLL for (int64_t j = 0; j < side; ++j) {
        Vector p[side], q[size];
        FASTXAI_UNROLL for (int64_t i = 0; i < side; ++i) load(m + (i * side + j) * apart(panel) + t * panel + k, p[i]);
        Scheme::scatter(p, q);
        FASTXAI_UNROLL for (int64_t i = 0; i < size; ++i) s[i][j] = q[i];
      }
      FASTXAI_UNROLL for (int64_t i = 0; i < size; ++i) {
        Vector q[size];
        Scheme::scatter(s[i], q);
        FASTXAI_UNROLL for (int64_t j = 0; j < size; ++j) store(pixel[i][j] + k, q[j] + b);
      }
    }
  }
}

}  // namespace fastxai::cpu

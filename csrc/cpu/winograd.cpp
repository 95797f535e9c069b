// A block of tiles at a time: what is transformed in, multiplied and transformed out stays in the second-level cache.
// Floor: 16 multiply-adds a tile of four pixels, channel and output, where a direct 3x3 convolution takes 36; 36 where a
// 5x5 one takes 100.
#include "winograd.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "vectors.h"

namespace fastxai::cpu {
namespace {

constexpr int64_t step = 16, panel = 32;
// Tiles of a block, a multiple of every kernel's rows. From 12 to 96 all took the same time within 5 %, but for the
// weight gradient of 512 x 512 channels, which goes through all its sums once a block: 20 % more at 24 than at 48.
constexpr int64_t block = 48;
// Floats from one position of a block to the next, rows of `stride` floats in each: an odd number of cache lines, so that
// the positions of a tile fall into sets of the first-level cache of their own.
FASTXAI_INLINE constexpr int64_t apart(int64_t stride) { return block * stride + step; }
// Products that are summed one after the other: sums of such sums round less.
constexpr int64_t run_length = 32;
// Tiles of the smallest piece a thread gets.
constexpr int64_t grain = 12;
// Multiply-adds that take one core some 10 us; waking the team costs 2 us.
constexpr int64_t serial = 1 << 20;

// Sums fill 24 of 32 registers, or 12 of 16; of a weight gradient, whose rows are channels, 16 and 8.
struct Wide : Floats<64> {
  static constexpr int rows = 12, grad_rows = 8;
};
struct Narrow : Floats<32> {
  static constexpr int rows = 6, grad_rows = 4;
};

// The one-dimensional transforms of kernels of 3 and of 5 pixels, for tiles of two outputs.
template <int kernel>
struct Scheme;

template <>
struct Scheme<3> {
  static constexpr int64_t side = 4, positions = 16;
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

// Points 0, +-a, +-b and infinity. Their squares and the product of these are exact.
template <>
struct Scheme<5> {
  static constexpr int64_t side = 6, positions = 36;
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
  static FASTXAI_INLINE void spread(const Vector (&p)[2], Vector (&d)[6]) {
    const Vector of_a = a * p[1], of_b = b * p[1];
    d[0] = p[0];
    d[1] = p[0] + of_a;
    d[2] = p[0] - of_a;
    d[3] = p[0] + of_b;
    d[4] = p[0] - of_b;
    d[5] = p[1];
  }
  template <class Vector>
  static FASTXAI_INLINE void scatter(const Vector (&p)[6], Vector (&d)[2]) {
    d[0] = p[0] + (p[1] + p[2]) + (p[3] + p[4]);
    d[1] = a * (p[1] - p[2]) + b * (p[3] - p[4]) + p[5];
  }
};

// The tile of a number: its image, and its first output pixel.
struct Tile {
  int64_t image, y, x;
};

FASTXAI_INLINE Tile tile(const Winograd& c, int64_t number) {
  const int64_t across = (c.out_width + 1) / 2, each = (c.out_height + 1) / 2 * across;
  return {number / each, number % each / across * 2, number % across * 2};
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

// n[positions][apart]: A nu A^T of `width` outputs of every tile's 2x2 pixels.
template <class Scheme, class Vector>
FASTXAI_INLINE void spread(const Winograd& c, const float* nu, int64_t first, int64_t count, int64_t begin,
                           int64_t width, const float* zeros, float* n) {
  constexpr int64_t side = Scheme::side;
  for (int64_t t = 0; t < count; ++t) {
    const Tile at = tile(c, first + t);
    const float* corner = nu + ((at.image * c.out_height + at.y) * c.out_width + at.x) * c.outputs + begin;
    const bool right = at.x + 1 < c.out_width, below = at.y + 1 < c.out_height;
    const float* pixel[2][2] = {{corner, right ? corner + c.outputs : zeros},
                                {below ? corner + c.out_width * c.outputs : zeros,
                                 right && below ? corner + (c.out_width + 1) * c.outputs : zeros}};
    for (int64_t k = 0; k < width; k += lanes<Vector>) {
      Vector s[side][2];
      FASTXAI_UNROLL for (int64_t j = 0; j < 2; ++j) {
        Vector p[2], q[side];
        FASTXAI_UNROLL for (int64_t i = 0; i < 2; ++i) load(pixel[i][j] + k, p[i]);
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

// du[0..rows) += sum over tiles of v[0..rows) (x) n; rows are channels. A block's sum starts from zero, so that the
// rounding of a long sum grows with the number of blocks and not of tiles.
template <class Vector, int rows, int vectors>
FASTXAI_INLINE void accumulate(const float* v, int64_t stride, const float* n, int64_t count, int64_t width,
                               float* du) {
  Vector acc[rows][vectors] = {};
  for (int64_t t = 0; t < count; ++t) {
    Vector w[vectors];
    FASTXAI_UNROLL for (int j = 0; j < vectors; ++j) load(n + t * panel + j * lanes<Vector>, w[j]);
    FASTXAI_UNROLL for (int i = 0; i < rows; ++i) {
      const float s = v[t * stride + i];
      FASTXAI_UNROLL for (int j = 0; j < vectors; ++j) acc[i][j] += s * w[j];
    }
  }
  FASTXAI_UNROLL for (int i = 0; i < rows; ++i) {
    FASTXAI_UNROLL for (int j = 0; j < vectors; ++j) {
      Vector sum;
      load(du + i * width + j * lanes<Vector>, sum);
      store(du + i * width + j * lanes<Vector>, sum + acc[i][j]);
    }
  }
}

// m[0..rows) = v[0..rows) u for `vectors` vectors of outputs; u has `width` floats a channel.
template <class Vector, int rows, int vectors>
FASTXAI_INLINE void multiply(const float* v, int64_t stride, const float* u, int64_t width, int64_t channels,
                             float* m) {
  for (int64_t first = 0; first < channels; first += run_length) {
    Vector acc[rows][vectors] = {};
    for (int64_t k = first, last = std::min(channels, first + run_length); k < last; ++k) {
      Vector w[vectors];
      FASTXAI_UNROLL for (int j = 0; j < vectors; ++j) load(u + k * width + j * lanes<Vector>, w[j]);
      FASTXAI_UNROLL for (int i = 0; i < rows; ++i) {
        const float s = v[i * stride + k];
        FASTXAI_UNROLL for (int j = 0; j < vectors; ++j) acc[i][j] += s * w[j];
      }
    }
    FASTXAI_UNROLL for (int i = 0; i < rows; ++i) {
      FASTXAI_UNROLL for (int j = 0; j < vectors; ++j) {
        float* out = m + i * panel + j * lanes<Vector>;
        Vector sum = {};
        if (first) load(out, sum);
        store(out, sum + acc[i][j]);
      }
    }
  }
}

// y = A^T m A + b for `width` outputs of every tile; pixels outside y go to `waste`.
template <class Scheme, class Vector>
FASTXAI_INLINE void scatter(const Winograd& c, const float* bias, int64_t first, int64_t count, const float* m,
                            int64_t begin, int64_t width, float* waste, float* y) {
  constexpr int64_t side = Scheme::side;
  for (int64_t t = 0; t < count; ++t) {
    const Tile at = tile(c, first + t);
    float* corner = y + ((at.image * c.out_height + at.y) * c.out_width + at.x) * c.outputs + begin;
    const bool right = at.x + 1 < c.out_width, below = at.y + 1 < c.out_height;
    float* pixel[2][2] = {{corner, right ? corner + c.outputs : waste},
                          {below ? corner + c.out_width * c.outputs : waste,
                           right && below ? corner + (c.out_width + 1) * c.outputs : waste}};
    for (int64_t k = 0; k < width; k += lanes<Vector>) {
      Vector b = {}, s[2][side];
      if (bias) load(bias + begin + k, b);
      FASTXAI_UNROLL for (int64_t j = 0; j < side; ++j) {
        Vector p[side], q[2];
        FASTXAI_UNROLL for (int64_t i = 0; i < side; ++i) load(m + (i * side + j) * apart(panel) + t * panel + k, p[i]);
        Scheme::scatter(p, q);
        FASTXAI_UNROLL for (int64_t i = 0; i < 2; ++i) s[i][j] = q[i];
      }
      FASTXAI_UNROLL for (int64_t i = 0; i < 2; ++i) {
        Vector q[2];
        Scheme::scatter(s[i], q);
        FASTXAI_UNROLL for (int64_t j = 0; j < 2; ++j) store(pixel[i][j] + k, q[j] + b);
      }
    }
  }
}

// What a thread works in, on whole cache lines.
struct Room {
  // Rows a power of two apart would fall into the same sets of the first-level cache.
  int64_t stride;
  std::vector<float> memory;
  float *v, *m, *waste, *zeros;

  Room(const Winograd& c, int64_t positions)
      : stride(c.channels + step),
        memory(positions * (apart(stride) + apart(panel)) + panel + std::max(c.channels, panel) + step, 0.0f) {
    v = memory.data() + (-(reinterpret_cast<uintptr_t>(memory.data()) / sizeof(float)) & (step - 1));
    m = v + positions * apart(stride);
    waste = m + positions * apart(panel);
    zeros = waste + panel;
  }
};

struct Call {
  const Winograd& conv;
  const float *x, *u, *bias;
  float* y;
};

template <class Registers, class Scheme>
FASTXAI_INLINE void run(const Call& call, int64_t begin, int64_t end) {
  constexpr int64_t positions = Scheme::positions;
  const Winograd& c = call.conv;
  const Room room(c, positions);
  using Vector = typename Registers::Vector;
  constexpr int64_t pair = 2 * lanes<Vector>;
  const int64_t stride = room.stride;
  float *v = room.v, *m = room.m;
  for (int64_t first = begin; first < end; first += block) {
    const int64_t count = std::min(block, end - first);
    gather<Scheme, Vector>(c, call.x, first, count, stride, room.zeros, v);
    for (int64_t o = 0; o < c.outputs; o += panel) {
      const int64_t width = std::min(panel, c.outputs - o);
      for (int64_t e = 0; e < positions; ++e) {
        const float* u = call.u + (o * positions + e * width) * c.channels;
        for (int64_t t = 0; t < count; t += Registers::rows) {
          const float* left = v + e * apart(stride) + t * stride;
          float* out = m + e * apart(panel) + t * panel;
          int64_t k = 0;
          for (; k + pair <= width; k += pair) {
            multiply<Vector, Registers::rows, 2>(left, stride, u + k, width, c.channels, out + k);
          }
          if (k < width) multiply<Vector, Registers::rows, 1>(left, stride, u + k, width, c.channels, out + k);
        }
      }
      scatter<Scheme, Vector>(c, call.bias, first, count, m, o, width, room.waste, call.y);
    }
  }
}

struct Grad {
  const Winograd& conv;
  const float *x, *nu;
  float* du;
  int64_t tiles, pieces;
};

template <class Registers, class Scheme>
FASTXAI_INLINE void run(const Grad& call, int64_t begin, int64_t end) {
  constexpr int64_t positions = Scheme::positions;
  const Winograd& c = call.conv;
  const Room room(c, positions);
  using Vector = typename Registers::Vector;
  constexpr int rows = Registers::grad_rows;
  constexpr int64_t pair = 2 * lanes<Vector>;
  const int64_t stride = room.stride, size = positions * c.channels * c.outputs;
  float *v = room.v, *n = room.m;
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t last = call.tiles * (piece + 1) / call.pieces;
    float* du = call.du + piece * size;
    std::fill_n(du, size, 0.0f);
    for (int64_t first = call.tiles * piece / call.pieces; first < last; first += block) {
      const int64_t count = std::min(block, last - first);
      gather<Scheme, Vector>(c, call.x, first, count, stride, room.zeros, v);
      for (int64_t o = 0; o < c.outputs; o += panel) {
        const int64_t width = std::min(panel, c.outputs - o);
        spread<Scheme, Vector>(c, call.nu, first, count, o, width, room.zeros, n);
        for (int64_t e = 0; e < positions; ++e) {
          const float *left = v + e * apart(stride), *right = n + e * apart(panel);
          float* sums = du + (o * positions + e * width) * c.channels;
          for (int64_t k = 0; k < c.channels; k += rows) {
            int64_t j = 0;
            for (; j + pair <= width; j += pair) {
              accumulate<Vector, rows, 2>(left + k, stride, right + j, count, width, sums + k * width + j);
            }
            if (j < width) accumulate<Vector, rows, 1>(left + k, stride, right + j, count, width, sums + k * width + j);
          }
        }
      }
    }
  }
}

template <class Registers, class Work>
FASTXAI_INLINE void run(const Work& work, int64_t begin, int64_t end) {
  work.conv.kernel == 3 ? run<Registers, Scheme<3>>(work, begin, end) : run<Registers, Scheme<5>>(work, begin, end);
}

FASTXAI_FOR("x86-64-v4") void wide(const Call& call, int64_t begin, int64_t end) { run<Wide>(call, begin, end); }
FASTXAI_FOR("x86-64-v3") void narrow(const Call& call, int64_t begin, int64_t end) { run<Narrow>(call, begin, end); }
FASTXAI_FOR("x86-64-v4") void wide(const Grad& call, int64_t begin, int64_t end) { run<Wide>(call, begin, end); }
FASTXAI_FOR("x86-64-v3") void narrow(const Grad& call, int64_t begin, int64_t end) { run<Narrow>(call, begin, end); }

int64_t tiles(const Winograd& c) {
  if (c.channels % step || c.outputs % step) {
    throw std::invalid_argument("winograd needs multiples of 16 channels, in and out");
  }
  if (c.kernel != 3 && c.kernel != 5) throw std::invalid_argument("winograd needs a kernel of 3 or 5 pixels");
  return c.rows * ((c.out_height + 1) / 2) * ((c.out_width + 1) / 2);
}

}  // namespace

void winograd_conv(const Winograd& conv, const float* x, const float* u, const float* bias, float* y, int registers,
                   int threads) {
  const Call call{conv, x, u, bias, y};
  const int64_t count = tiles(conv);
  if (count * (conv.kernel + 1) * (conv.kernel + 1) * conv.channels * conv.outputs < serial) threads = 1;
  parallel_for(count, grain, threads, [&](int64_t begin, int64_t end) {
    registers == 32 ? wide(call, begin, end) : narrow(call, begin, end);
  });
}

void winograd_weight_grad(const Winograd& conv, const float* x, const float* nu, float* du, int pieces, int registers) {
  const Grad call{conv, x, nu, du, tiles(conv), pieces};
  parallel_for(pieces, 1, pieces, [&](int64_t begin, int64_t end) {
    registers == 32 ? wide(call, begin, end) : narrow(call, begin, end);
  });
}

}  // namespace fastxai::cpu

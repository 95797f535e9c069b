// A block of tiles at a time: what is transformed in, multiplied and transformed out stays in a cache, up to 256
// channels (3x3) or 96 (5x5) in the second level's megabyte.
// Floor: 36 multiply-adds a tile of 16 pixels, channel and output, where a direct 3x3 convolution takes 144; 36 a tile
// of four pixels where a 5x5 one takes 100.
#include "winograd.h"

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "winograd_tiles.h"

namespace fastxai::cpu {
namespace {

// Products that are summed one after the other: sums of such sums round less.
constexpr int64_t run_length = 32;
// Tiles of the smallest piece a thread gets.
constexpr int64_t grain = 4;
// Multiply-adds that take one core some 10 us; waking the team costs 2 us.
constexpr int64_t serial = 1 << 20;

// Sums fill 24 of 32 registers, or 12 of 16; of the last `few` tiles 8 and 4, of a weight gradient, whose rows are
// channels, 16 and 8. What runs alone has a function of its own: constants of the transforms, kept in registers
// throughout, would drive sums into memory.
struct Wide : Floats<64> {
  static constexpr int rows = 12, few = 4, grad_rows = 8;
  template <class Work>
  FASTXAI_FOR("x86-64-v4") FASTXAI_ALONE static void alone(const Work& work) {
    work();
  }
};
struct Narrow : Floats<32> {
  static constexpr int rows = 6, few = 2, grad_rows = 4;
  template <class Work>
  FASTXAI_FOR("x86-64-v3") FASTXAI_ALONE static void alone(const Work& work) {
    work();
  }
};

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

// m = v u for `rows` tiles and `width` outputs at one position.
template <class Vector, int rows>
FASTXAI_INLINE void multiply_rows(const float* v, int64_t stride, const float* u, int64_t width, int64_t channels,
                                  float* m) {
  constexpr int64_t pair = 2 * lanes<Vector>;
  int64_t k = 0;
  for (; k + pair <= width; k += pair) multiply<Vector, rows, 2>(v, stride, u + k, width, channels, m + k);
  if (k < width) multiply<Vector, rows, 1>(v, stride, u + k, width, channels, m + k);
}

// m = v u at every position, for `count` tiles and `width` outputs; u[positions][channels][width].
template <class Registers, class Scheme>
FASTXAI_INLINE void multiply_all(const float* v, int64_t stride, const float* u, int64_t count, int64_t width,
                                 int64_t channels, float* m) {
  using Vector = typename Registers::Vector;
  constexpr int64_t rows = Registers::rows, few = Registers::few;
  for (int64_t e = 0; e < Scheme::positions; ++e, u += width * channels) {
    const float* left = v + e * apart(stride);
    float* out = m + e * apart(panel);
    int64_t t = 0;
    for (; count - t > rows - few; t += rows) {
      multiply_rows<Vector, rows>(left + t * stride, stride, u, width, channels, out + t * panel);
    }
    for (; t < count; t += few) {
      multiply_rows<Vector, few>(left + t * stride, stride, u, width, channels, out + t * panel);
    }
  }
}

// du += the sums of v (x) n at every position; du[positions][channels][width].
template <class Registers, class Scheme>
FASTXAI_INLINE void accumulate_all(const float* v, int64_t stride, const float* n, int64_t count, int64_t width,
                                   int64_t channels, float* du) {
  using Vector = typename Registers::Vector;
  constexpr int rows = Registers::grad_rows;
  constexpr int64_t pair = 2 * lanes<Vector>;
  for (int64_t e = 0; e < Scheme::positions; ++e, du += width * channels) {
    const float *left = v + e * apart(stride), *right = n + e * apart(panel);
    for (int64_t k = 0; k < channels; k += rows) {
      float* sums = du + k * width;
      int64_t j = 0;
      for (; j + pair <= width; j += pair) {
        accumulate<Vector, rows, 2>(left + k, stride, right + j, count, width, sums + j);
      }
      if (j < width) accumulate<Vector, rows, 1>(left + k, stride, right + j, count, width, sums + j);
    }
  }
}

// What a thread works in, on whole cache lines.
struct Room {
  // Rows a power of two apart would fall into the same sets of the first-level cache.
  int64_t stride;
  std::unique_ptr<float[]> memory;
  float *zeros, *waste, *v, *m;

  Room(const Winograd& c, int64_t positions) : stride(c.channels + step) {
    const int64_t widest = std::max(c.channels, panel);
    memory.reset(new float[widest + panel + positions * (apart(stride) + apart(panel)) + step]);
    zeros = memory.get() + (-(reinterpret_cast<uintptr_t>(memory.get()) / sizeof(float)) & (step - 1));
    std::fill_n(zeros, widest, 0.0f);
    waste = zeros + widest;
    v = waste + panel;
    m = v + positions * apart(stride);
  }

  // Rows that are multiplied along with the last of `count` tiles, whose products nobody reads.
  void pad(int64_t count, int64_t few, int64_t positions) const {
    const int64_t more = (few - count % few) % few;
    for (int64_t e = 0; e < positions; ++e) std::fill_n(v + e * apart(stride) + count * stride, more * stride, 0.0f);
  }
};

struct Call {
  const Winograd& conv;
  const float *x, *u, *bias;
  float* y;
};

template <class Registers, class Scheme>
FASTXAI_INLINE void run(const Call& call, int64_t begin, int64_t end) {
  using Vector = typename Registers::Vector;
  const Winograd& c = call.conv;
  const Room room(c, Scheme::positions);
  const int64_t stride = room.stride;
  float *v = room.v, *m = room.m;
  for (int64_t first = begin; first < end; first += block) {
    const int64_t count = std::min(block, end - first);
    Registers::alone([&]() FASTXAI_BODY { gather<Scheme, Vector>(c, call.x, first, count, stride, room.zeros, v); });
    room.pad(count, Registers::few, Scheme::positions);
    for (int64_t o = 0; o < c.outputs; o += panel) {
      const int64_t width = std::min(panel, c.outputs - o);
      const float* u = call.u + o * Scheme::positions * c.channels;
      Registers::alone([&]() FASTXAI_BODY {
        multiply_all<Registers, Scheme>(v, stride, u, count, width, c.channels, m);
      });
      Registers::alone([&]() FASTXAI_BODY {
        scatter<Scheme, Vector>(c, call.bias, first, count, m, o, width, room.waste, call.y);
      });
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
  using Vector = typename Registers::Vector;
  const Winograd& c = call.conv;
  const Room room(c, Scheme::positions);
  const int64_t stride = room.stride, size = Scheme::positions * c.channels * c.outputs;
  float *v = room.v, *n = room.m;
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t last = call.tiles * (piece + 1) / call.pieces;
    float* du = call.du + piece * size;
    std::fill_n(du, size, 0.0f);
    for (int64_t first = call.tiles * piece / call.pieces; first < last; first += block) {
      const int64_t count = std::min(block, last - first);
      Registers::alone([&]() FASTXAI_BODY { gather<Scheme, Vector>(c, call.x, first, count, stride, room.zeros, v); });
      for (int64_t o = 0; o < c.outputs; o += panel) {
        const int64_t width = std::min(panel, c.outputs - o);
        Registers::alone([&]() FASTXAI_BODY {
          spread<Scheme, Vector>(c, call.nu, first, count, o, width, room.zeros, n);
        });
        float* sums = du + o * Scheme::positions * c.channels;
        Registers::alone([&]() FASTXAI_BODY {
          accumulate_all<Registers, Scheme>(v, stride, n, count, width, c.channels, sums);
        });
      }
    }
  }
}

template <class Registers, class Work>
FASTXAI_INLINE void run(const Work& work, int64_t begin, int64_t end) {
  if (work.conv.kernel == 5) {
    run<Registers, Scheme<5, 2>>(work, begin, end);
  } else if (work.conv.tile == 4) {
    run<Registers, Scheme<3, 4>>(work, begin, end);
  } else {
    run<Registers, Scheme<3, 2>>(work, begin, end);
  }
}

FASTXAI_FOR("x86-64-v4") void wide(const Call& call, int64_t begin, int64_t end) { run<Wide>(call, begin, end); }
FASTXAI_FOR("x86-64-v3") void narrow(const Call& call, int64_t begin, int64_t end) { run<Narrow>(call, begin, end); }
FASTXAI_FOR("x86-64-v4") void wide(const Grad& call, int64_t begin, int64_t end) { run<Wide>(call, begin, end); }
FASTXAI_FOR("x86-64-v3") void narrow(const Grad& call, int64_t begin, int64_t end) { run<Narrow>(call, begin, end); }

int64_t tiles(const Winograd& c) {
  if (c.channels % step || c.outputs % step) {
    throw std::invalid_argument("winograd needs multiples of 16 channels, in and out");
  }
  if (!(c.kernel == 3 && (c.tile == 2 || c.tile == 4)) && !(c.kernel == 5 && c.tile == 2)) {
    throw std::invalid_argument("winograd needs a kernel of 3 pixels and tiles of 2 or 4, or of 5 and tiles of 2");
  }
  return c.rows * tiles_along(c.out_height, c.tile) * tiles_along(c.out_width, c.tile);
}

}  // namespace

void winograd_conv(const Winograd& conv, const float* x, const float* u, const float* bias, float* y, int registers,
                   int threads) {
  const Call call{conv, x, u, bias, y};
  const int64_t count = tiles(conv);
  const int64_t side = conv.kernel + conv.tile - 1;
  if (count * side * side * conv.channels * conv.outputs < serial) threads = 1;
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

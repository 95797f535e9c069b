// The weight is read as it lies: to pack it for a few rows would cost more than they do. Floor: rows x inputs x outputs
// multiply-adds, or one reading of the weight where rows are few.
#include "linear.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace fastxai::cpu {
namespace {

// Inputs of a pass of `apply`: what six rows of the weight and four of x hold of them stays in the first-level cache.
constexpr int64_t depth = 768;
// Products that `combine` sums one after the other, while its operand stays there: sums of such sums round less.
constexpr int64_t run_length = 256, left_stride = run_length + 16;
// Rows from which on it pays to copy operands to where they are read fast.
constexpr int64_t many = 12;
// Rows at most that a thread works on at once, so that copies of theirs stay in the second-level cache.
constexpr int64_t block = 512;
// Multiply-adds that take one core some 10 us; waking the team costs 2 us.
constexpr int64_t serial = 1 << 20;

// Sums fill 24 of 32 registers, or 12 of 16.
struct Wide : Floats<64> {
  static constexpr int rows = 4, outputs = 6, sums = 24;
};
struct Narrow : Floats<32> {
  static constexpr int rows = 3, outputs = 4, sums = 12;
};

// f(n) with n, of least to most, as a constant.
template <int least, int most, class F>
FASTXAI_INLINE void with_constant(int64_t n, const F& f) {
  if (n == most) return f(std::integral_constant<int, most>{});
  if constexpr (most > least) with_constant<least, most - 1>(n, f);
}

// f(first, constant size) for slices of [0, n) of about equal size, least to most, where n itself is
// at least `least`, and beyond `most` so large that halves of it are.
template <int least, int most, class F>
FASTXAI_INLINE void for_slices(int64_t n, const F& f) {
  const int64_t pieces = (n + most - 1) / most;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t first = n * i / pieces, last = n * (i + 1) / pieces;
    with_constant<least, most>(last - first, [&](auto size) __attribute__((always_inline)) { f(first, size); });
  }
}

// acc[i][j] += x[i] * w[j], over the lanes that `get` reads.
template <int rows, int outputs, class Vector, class Get>
FASTXAI_INLINE void multiply(const float* x, const float* w, int64_t stride, const Get& get,
                             Vector (&acc)[rows * outputs]) {
  Vector a[rows];
  FASTXAI_UNROLL for (int i = 0; i < rows; ++i) get(x + i * stride, a[i]);
  FASTXAI_UNROLL for (int j = 0; j < outputs; ++j) {
    Vector b;
    get(w + j * stride, b);
    FASTXAI_UNROLL for (int i = 0; i < rows; ++i) acc[i * outputs + j] += a[i] * b;
  }
}

// y[i][j] = <x[i], w[j]> over `count` inputs, plus what `y` holds, or at `first` plus the bias.
template <class Vector, int rows, int outputs>
FASTXAI_INLINE void dot(const float* x, const float* w, int64_t stride, int64_t count, const float* bias, bool first,
                        float* y, int64_t y_stride) {
  constexpr int64_t step = lanes<Vector>;
  Vector acc[rows * outputs] = {};
  const int64_t whole = count / step * step;
  for (int64_t k = 0; k < whole; k += step) {
    const auto get = [](const float* p, Vector& v) __attribute__((always_inline)) { load(p, v); };
    multiply<rows, outputs>(x + k, w + k, stride, get, acc);
  }
  if (const size_t rest = (count - whole) * sizeof(float)) {
    const auto part = [rest](const float* p, Vector& v) __attribute__((always_inline)) {
      v = Vector{};
      std::memcpy(&v, p, rest);
    };
    multiply<rows, outputs>(x + whole, w + whole, stride, part, acc);
  }
  float added[rows * outputs];
  sums(acc, added);
  FASTXAI_UNROLL for (int i = 0; i < rows; ++i) {
    FASTXAI_UNROLL for (int j = 0; j < outputs; ++j) {
      float& out = y[i * y_stride + j];
      out = added[i * outputs + j] + (first ? (bias ? bias[j] : 0.0f) : out);
    }
  }
}

struct Apply {
  int64_t rows, inputs, outputs;
  const float *x, *weight, *bias;
  float* y;

  Apply part(int64_t first, int64_t count) const {
    return {count, inputs, outputs, x + first * inputs, weight, bias, y + first * outputs};
  }
};

// Rows of `count` floats, side by side: rows a power of two apart would fall into the same sets of the cache.
FASTXAI_INLINE void gather(const float* from, int64_t stride, int64_t rows, int64_t count, float* to,
                           int64_t to_stride) {
  for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * to_stride, from + i * stride, count * sizeof(float));
}

// Asks for `count` floats of `rows` rows.
FASTXAI_INLINE void fetch(const float* from, int64_t stride, int64_t rows, int64_t count) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < count; k += 16) __builtin_prefetch(from + i * stride + k, 0, 2);
  }
}

template <class Registers>
FASTXAI_INLINE void run(const Apply& c, int64_t begin, int64_t end) {
  const int64_t rows = c.rows, inputs = c.inputs, outputs = c.outputs;
  const bool packed = rows >= many;
  constexpr int64_t stride = depth + 16;
  std::vector<float> xs(packed ? rows * stride : 0);
  float ws[Registers::outputs * stride];
  for (int64_t k = 0; k < inputs; k += depth) {
    const int64_t count = std::min(depth, inputs - k);
    if (packed) gather(c.x + k, inputs, rows, count, xs.data(), stride);
    const auto sums = [&](int64_t o, auto width) __attribute__((always_inline)) {
      constexpr int across = decltype(width)::value;
      if (packed) gather(c.weight + o * inputs + k, inputs, across, count, ws, stride);
      for_slices<1, Registers::rows>(rows, [&](int64_t r, auto height) __attribute__((always_inline)) {
        // What is copied next comes from memory meanwhile, a share with every slice.
        if (packed && o + 2 * across <= end) {
          const int64_t from = count * r / rows, to = count * (r + decltype(height)::value) / rows;
          fetch(c.weight + (o + across) * inputs + k + from, inputs, across, to - from);
        }
        dot<typename Registers::Vector, decltype(height)::value, across>(
            packed ? xs.data() + r * stride : c.x + r * inputs + k, packed ? ws : c.weight + o * inputs + k,
            packed ? stride : inputs, count, c.bias ? c.bias + o : nullptr, k == 0, c.y + r * outputs + o, outputs);
      });
    };
    int64_t o = begin;
    for (; o + Registers::outputs <= end; o += Registers::outputs) {
      sums(o, std::integral_constant<int, Registers::outputs>{});
    }
    for (; o < end; ++o) sums(o, std::integral_constant<int, 1>{});
  }
}

// out[m][k] = sum over j of a(m, j) b[j][k]; a(m, j) lies at a + m * across + j * along.
struct Combine {
  int64_t rows, terms, columns;
  const float* a;
  int64_t across, along;
  const float* b;
  float* out;

  Combine part(int64_t first, int64_t count) const {
    return {count, terms, columns, a + first * across, across, along, b, out + first * columns};
  }
};

template <class Vector, int rows, int vectors>
FASTXAI_INLINE void combine(const float* a, int64_t terms, const float* b, int64_t stride, bool first, float* out,
                            int64_t out_stride) {
  Vector acc[rows][vectors] = {};
  for (int64_t j = 0; j < terms; ++j) {
    Vector w[vectors];
    FASTXAI_UNROLL for (int v = 0; v < vectors; ++v) load(b + j * stride + v * lanes<Vector>, w[v]);
    FASTXAI_UNROLL for (int i = 0; i < rows; ++i) {
      const float s = a[i * left_stride + j];
      FASTXAI_UNROLL for (int v = 0; v < vectors; ++v) acc[i][v] += s * w[v];
    }
  }
  FASTXAI_UNROLL for (int i = 0; i < rows; ++i) {
    FASTXAI_UNROLL for (int v = 0; v < vectors; ++v) {
      float* p = out + i * out_stride + v * lanes<Vector>;
      Vector before = {};
      if (!first) load(p, before);
      store(p, before + acc[i][v]);
    }
  }
}

// Columns [begin, end), `vectors` vectors of `least` to `most` rows at a time. `packed`: from copies that lie in the
// order of reading.
template <class Registers, int vectors, int least, int most>
FASTXAI_INLINE void columns(const Combine& c, int64_t begin, int64_t end) {
  using Vector = typename Registers::Vector;
  constexpr int64_t width = vectors * lanes<Vector>;
  const bool packed = c.rows >= many;
  const int64_t across = packed ? 8 * width : width;
  constexpr int64_t panel = run_length * width + 80;
  std::vector<float> left(c.rows * left_stride), right((packed ? 8 : 1) * panel);
  float last[most * width];
  for (int64_t j = 0; j < c.terms; j += run_length) {
    const int64_t terms = std::min(run_length, c.terms - j);
    const float* a = c.a + j * c.along;
    for (int64_t m = 0; m < c.rows; ++m) {
      for (int64_t t = 0; t < terms; ++t) left[m * left_stride + t] = a[m * c.across + t * c.along];
    }
    for (int64_t block = begin; block < end; block += across) {
      const int64_t stop = std::min(block + across, end);
      if (packed || stop - block < across) {
        for (int64_t t = 0; t < terms; ++t) {
          const float* b = c.b + (j + t) * c.columns;
          float* to = right.data() + t * width;
          int64_t k = block;
          for (; k + width <= stop; k += width, to += panel) std::memcpy(to, b + k, width * sizeof(float));
          if (k < stop) std::memcpy(to, b + k, (stop - k) * sizeof(float));
        }
      }
      for (int64_t k = block; k < stop; k += width) {
        const int64_t valid = std::min(width, stop - k);
        const bool copied = packed || valid < width;
        const float* b = copied ? right.data() + (k - block) / width * panel : c.b + j * c.columns + k;
        const int64_t stride = copied ? width : c.columns;
        for_slices<least, most>(c.rows, [&](int64_t m, auto height) __attribute__((always_inline)) {
          constexpr int rows = decltype(height)::value;
          if (packed && k + across + width <= end) {
            const int64_t from = terms * m / c.rows, to = terms * (m + rows) / c.rows;
            fetch(c.b + (j + from) * c.columns + k + across, c.columns, to - from, width);
          }
          float* out = c.out + m * c.columns + k;
          const float* s = left.data() + m * left_stride;
          if (valid == width) {
            combine<Vector, rows, vectors>(s, terms, b, stride, j == 0, out, c.columns);
            return;
          }
          combine<Vector, rows, vectors>(s, terms, b, stride, true, last, width);
          for (int64_t i = 0; i < rows; ++i) {
            for (int64_t v = 0; v < valid; ++v) {
              float& to = out[i * c.columns + v];
              to = last[i * width + v] + (j == 0 ? 0.0f : to);
            }
          }
        });
      }
    }
  }
}

template <class Registers>
FASTXAI_INLINE void run(const Combine& c, int64_t begin, int64_t end) {
  // Few rows take more columns at once: a weight is then read in longer stretches.
  constexpr int few = Registers::sums / 8;
  if (c.rows <= few) return columns<Registers, 8, 1, few>(c, begin, end);
  if (c.rows <= 2 * few) return columns<Registers, 4, few + 1, 2 * few>(c, begin, end);
  columns<Registers, 2, 2 * few, Registers::sums / 2>(c, begin, end);
}

FASTXAI_FOR("x86-64-v4") void wide(const Apply& call, int64_t begin, int64_t end) { run<Wide>(call, begin, end); }
FASTXAI_FOR("x86-64-v3") void narrow(const Apply& call, int64_t begin, int64_t end) { run<Narrow>(call, begin, end); }
FASTXAI_FOR("x86-64-v4") void wide(const Combine& call, int64_t begin, int64_t end) { run<Wide>(call, begin, end); }
FASTXAI_FOR("x86-64-v3") void narrow(const Combine& call, int64_t begin, int64_t end) { run<Narrow>(call, begin, end); }

template <class Call>
void launch(const Call& call, const Linear& layer, int64_t count, int64_t grain, int registers, int threads) {
  if (layer.rows * layer.inputs * layer.outputs < serial) threads = 1;
  const int64_t pieces = (call.rows + block - 1) / block;
  parallel_for(count, grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t first = call.rows * i / pieces, last = call.rows * (i + 1) / pieces;
      const Call part = call.part(first, last - first);
      registers == 32 ? wide(part, begin, end) : narrow(part, begin, end);
    }
  });
}

}  // namespace

void linear_apply(const Linear& layer, const float* x, const float* weight, const float* bias, float* y, int registers,
                  int threads) {
  const auto [rows, inputs, outputs] = layer;
  launch(Apply{rows, inputs, outputs, x, weight, bias, y}, layer, outputs, 6, registers, threads);
}

void linear_transpose(const Linear& layer, const float* nu, const float* weight, float* mu, int registers,
                      int threads) {
  const auto [rows, inputs, outputs] = layer;
  launch(Combine{rows, outputs, inputs, nu, outputs, 1, weight, mu}, layer, inputs, 128, registers, threads);
}

void linear_weight_grad(const Linear& layer, const float* nu, const float* x, float* grad, int registers, int threads) {
  const auto [rows, inputs, outputs] = layer;
  launch(Combine{outputs, rows, inputs, nu, 1, outputs, x, grad}, layer, inputs, 32, registers, threads);
}

}  // namespace fastxai::cpu

// Floor: y is read once. What is small in it is summed anew, which dead units and black areas make few: of these only
// pixels of x that are not all zero count.
#include <algorithm>

#include "vectors.h"
#include "winograd.h"

namespace fastxai::cpu {
namespace {

using Vector = Floats<64>::Vector;
constexpr int64_t step = lanes<Vector>;
// Output pixels of the smallest piece a thread gets.
constexpr int64_t grain = 64;
// Floats of y that one core reads in some 10 us; waking the team costs 2 us.
constexpr int64_t serial = 1 << 17;

struct Call {
  const Winograd& conv;
  const float *x, *weight, *bias, *least;
  float* y;
};

// What a pixel of y sees: the pixels of x in its window that are not all zero, and the weights that meet them.
struct Window {
  const float *x[25], *weight[25];
  int64_t size = 0;
};

FASTXAI_INLINE float largest(const float* x, int64_t count) {
  Vector most = {}, v;
  for (int64_t k = 0; k < count; k += step) {
    load(x + k, v);
    v = v < 0 ? -v : v;
    most = v > most ? v : most;
  }
  float found = 0;
  for (int64_t i = 0; i < step; ++i) found = std::max(found, most[i]);
  return found;
}

FASTXAI_INLINE bool small(float y, float bound) { return (y < 0 ? -y : y) < bound; }

FASTXAI_INLINE bool any_small(const Call& call, const float* y, float most) {
  int few = 0;
  FASTXAI_VECTOR for (int64_t o = 0; o < call.conv.outputs; ++o) few |= small(y[o], call.least[o] * most);
  return few != 0;
}

FASTXAI_INLINE Window window(const Call& call, const float* image, int64_t row, int64_t column) {
  const Winograd& c = call.conv;
  Window seen;
  for (int64_t i = 0; i < c.kernel; ++i) {
    for (int64_t j = 0; j < c.kernel; ++j) {
      const int64_t y = row + i - c.padding_h, x = column + j - c.padding_w;
      if (y < 0 || y >= c.height || x < 0 || x >= c.width) continue;
      const float* pixel = image + (y * c.width + x) * c.channels;
      int some = 0;
      FASTXAI_VECTOR for (int64_t k = 0; k < c.channels; ++k) some |= pixel[k] != 0;
      if (!some) continue;
      seen.x[seen.size] = pixel;
      seen.weight[seen.size++] = call.weight + (i * c.kernel + j) * c.channels;
    }
  }
  return seen;
}

FASTXAI_INLINE float product(const Winograd& c, const Window& seen, int64_t output) {
  Vector total = {}, a, b;
  for (int64_t t = 0; t < seen.size; ++t) {
    const float* weight = seen.weight[t] + output * c.kernel * c.kernel * c.channels;
    for (int64_t k = 0; k < c.channels; k += step) {
      load(seen.x[t] + k, a);
      load(weight + k, b);
      total += a * b;
    }
  }
  return sum(total);
}

FASTXAI_CLONES void refine(const Call& call, int64_t begin, int64_t end) {
  const Winograd& c = call.conv;
  const int64_t pixels = c.out_height * c.out_width, size = c.height * c.width * c.channels;
  for (int64_t k = begin; k < end;) {
    const float* image = call.x + k / pixels * size;
    const float most = largest(image, size);
    for (const int64_t last = std::min(end, (k / pixels + 1) * pixels); k < last; ++k) {
      float* y = call.y + k * c.outputs;
      if (!any_small(call, y, most)) continue;
      const Window seen = window(call, image, k % pixels / c.out_width, k % c.out_width);
      for (int64_t o = 0; o < c.outputs; ++o) {
        if (small(y[o], call.least[o] * most)) y[o] = product(c, seen, o) + (call.bias ? call.bias[o] : 0);
      }
    }
  }
}

}  // namespace

void winograd_refine(const Winograd& conv, const float* x, const float* weight, const float* bias, const float* least,
                     float* y, int threads) {
  const Call call{conv, x, weight, bias, least, y};
  const int64_t pixels = conv.rows * conv.out_height * conv.out_width;
  if (pixels * conv.outputs < serial) threads = 1;
  parallel_for(pixels, grain, threads, [&](int64_t begin, int64_t end) { refine(call, begin, end); });
}

}  // namespace fastxai::cpu

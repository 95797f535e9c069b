// Floor: `of` and z are read once. What is small in z beside the pixels that its tile mixes is summed anew; in black
// areas, where that may be many, nothing is left to sum.
#include "winograd.h"

#include <algorithm>
#include <vector>

#include "winograd_tiles.h"

namespace fastxai::cpu {
namespace {

using Vector = Floats<64>::Vector;
// Tiles of the smallest piece a thread gets.
constexpr int64_t grain = 16;
// Floats of y that one core reads in some 3 us; waking the team costs 2 us.
constexpr int64_t serial = 1 << 15;

struct Call {
  const Winograd& conv;
  const Small& where;
  const float *x, *weight, *bias;
  float* y;
};

// What a pixel of y sees: the pixels of x in its window that are not all zero, and the weights that meet them.
struct Window {
  const float *x[25], *weight[25];
  int64_t size = 0;
};

// The largest magnitude of every pixel of an image.
FASTXAI_INLINE void largest(const Winograd& c, const float* image, float* most) {
  for (int64_t p = 0; p < c.height * c.width; ++p) {
    Vector found = {}, v;
    for (int64_t k = 0; k < c.channels; k += step) {
      load(image + p * c.channels + k, v);
      v = v < 0 ? -v : v;
      found = v > found ? v : found;
    }
    most[p] = 0;
    FASTXAI_UNROLL for (int64_t i = 0; i < step; ++i) most[p] = std::max(most[p], found[i]);
  }
}

// The largest magnitude that a tile's transform mixes.
FASTXAI_INLINE float largest_around(const Winograd& c, const float* most, const Tile& at) {
  const int64_t side = c.kernel + c.tile - 1;
  const int64_t top = std::max<int64_t>(0, at.y - c.padding_h), left = std::max<int64_t>(0, at.x - c.padding_w);
  const int64_t bottom = std::min(c.height, at.y - c.padding_h + side);
  const int64_t right = std::min(c.width, at.x - c.padding_w + side);
  float found = 0;
  for (int64_t y = top; y < bottom; ++y) {
    for (int64_t x = left; x < right; ++x) found = std::max(found, most[y * c.width + x]);
  }
  return found;
}

FASTXAI_INLINE bool small(float z, float bound) { return (z < 0 ? -z : z) < bound; }

FASTXAI_INLINE bool any_small(const Winograd& c, const float* z, const float* least, float most) {
  int few = 0;
  FASTXAI_VECTOR for (int64_t o = 0; o < c.outputs; ++o) few |= small(z[o], least[o] * most);
  return few != 0;
}

FASTXAI_INLINE Window window(const Call& call, const Tile& at) {
  const Winograd& c = call.conv;
  const float* image = call.x + at.image * c.height * c.width * c.channels;
  Window seen;
  for (int64_t i = 0; i < c.kernel; ++i) {
    for (int64_t j = 0; j < c.kernel; ++j) {
      const int64_t y = at.y + i - c.padding_h, x = at.x + j - c.padding_w;
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

FASTXAI_INLINE void refine_pixel(const Call& call, const Tile& at, float most) {
  const Winograd& c = call.conv;
  const float* least = call.where.least;
  const int64_t pixel = ((at.image * c.out_height + at.y) * c.out_width + at.x) * c.outputs;
  const float* z = call.where.z + pixel;
  if (!any_small(c, z, least, most)) return;
  const Window seen = window(call, at);
  for (int64_t o = 0; o < c.outputs; ++o) {
    if (small(z[o], least[o] * most)) call.y[pixel + o] = product(c, seen, o) + (call.bias ? call.bias[o] : 0);
  }
}

FASTXAI_CLONES void refine(const Call& call, int64_t begin, int64_t end) {
  const Winograd& c = call.conv;
  std::vector<float> most(c.height * c.width);
  for (int64_t k = begin; k < end; ++k) {
    const Tile at = tile(c, k);
    if (k == begin || (at.y == 0 && at.x == 0)) {
      largest(c, call.where.of + at.image * c.height * c.width * c.channels, most.data());
    }
    const float around = largest_around(c, most.data(), at);
    for (int64_t y = at.y; y < std::min(c.out_height, at.y + c.tile); ++y) {
      for (int64_t x = at.x; x < std::min(c.out_width, at.x + c.tile); ++x) {
        refine_pixel(call, {at.image, y, x}, around);
      }
    }
  }
}

}  // namespace

void winograd_refine(const Winograd& conv, const Small& where, const float* x, const float* weight, const float* bias,
                     float* y, int threads) {
  const Call call{conv, where, x, weight, bias, y};
  if (conv.rows * conv.out_height * conv.out_width * conv.outputs < serial) threads = 1;
  const int64_t tiles = conv.rows * tiles_along(conv.out_height, conv.tile) * tiles_along(conv.out_width, conv.tile);
  parallel_for(tiles, grain, threads, [&](int64_t begin, int64_t end) { refine(call, begin, end); });
}

}  // namespace fastxai::cpu

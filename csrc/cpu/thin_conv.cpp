// Vectors run over the wide channels; four neighbouring pixels share each weight that is loaded, so that the loops are
// bound by multiply-adds and not by loads.
#include "thin_conv.h"

#include <algorithm>
#include <stdexcept>

#include "vectors.h"

namespace fastxai::cpu {
namespace {

constexpr int64_t step = lanes<Floats<64>::Vector>, pixels = 4;
// Multiply-adds that take one core some 10 us; waking the team costs 2 us.
constexpr int64_t serial = 1 << 20;
using Vector = Floats<64>::Vector;

// `count` pixels of one row of the result from column x on; every tap j with `first` <= j < `last` meets nu for all.
template <int64_t thin, int64_t count>
FASTXAI_INLINE void span(const ThinConv& c, const float* nu, const float* weight, float* mu, int64_t y, int64_t x,
                         int64_t first, int64_t last) {
  Vector acc[count][thin] = {};
  for (int64_t i = 0; i < c.kernel_h; ++i) {
    const int64_t source_y = y + c.padding_h - i;
    if (source_y < 0 || source_y >= c.out_height) continue;
    for (int64_t j = first; j < last; ++j) {
      const float* source = nu + (source_y * c.out_width + x + c.padding_w - j) * c.wide;
      const float* w = weight + (i * c.kernel_w + j) * thin * c.wide;
      for (int64_t o = 0; o < c.wide; o += step) {
        Vector s[count];
        FASTXAI_UNROLL for (int64_t p = 0; p < count; ++p) load(source + p * c.wide + o, s[p]);
        FASTXAI_UNROLL for (int64_t t = 0; t < thin; ++t) {
          Vector v;
          load(w + t * c.wide + o, v);
          FASTXAI_UNROLL for (int64_t p = 0; p < count; ++p) acc[p][t] += v * s[p];
        }
      }
    }
  }
  float* target = mu + (y * c.width + x) * thin;
  FASTXAI_UNROLL for (int64_t p = 0; p < count; ++p)
    FASTXAI_UNROLL for (int64_t t = 0; t < thin; ++t) target[p * thin + t] = sum(acc[p][t]);
}

template <int64_t thin>
FASTXAI_INLINE void row(const ThinConv& c, const float* nu, const float* weight, float* mu, int64_t y) {
  for (int64_t x = 0; x < c.width;) {
    const bool inside = x + c.padding_w - (c.kernel_w - 1) >= 0 && x + pixels - 1 + c.padding_w < c.out_width;
    if (inside && x + pixels <= c.width) {
      span<thin, pixels>(c, nu, weight, mu, y, x, 0, c.kernel_w);
      x += pixels;
    } else {
      const int64_t reach = x + c.padding_w;  // column of nu under tap j is reach - j
      const int64_t first = reach < c.out_width ? 0 : reach - c.out_width + 1;
      span<thin, 1>(c, nu, weight, mu, y, x, first, reach + 1 < c.kernel_w ? reach + 1 : c.kernel_w);
      ++x;
    }
  }
}

// `count` pixels of one row of y from column x on, `vectors` vectors of channels from o on; taps as in `span`.
template <int64_t thin, int64_t count, int64_t vectors>
FASTXAI_INLINE void span_out(const ThinConv& c, const float* source, const float* weight, const float* bias, float* y,
                             int64_t row, int64_t x, int64_t o, int64_t first, int64_t last) {
  Vector acc[count][vectors] = {};
  for (int64_t i = 0; i < c.kernel_h; ++i) {
    const int64_t source_y = row - c.padding_h + i;
    if (source_y < 0 || source_y >= c.height) continue;
    for (int64_t j = first; j < last; ++j) {
      const float* s = source + (source_y * c.width + x - c.padding_w + j) * thin;
      const float* w = weight + (i * c.kernel_w + j) * thin * c.wide + o;
      FASTXAI_UNROLL for (int64_t t = 0; t < thin; ++t) {
        Vector v[vectors];
        FASTXAI_UNROLL for (int64_t k = 0; k < vectors; ++k) load(w + t * c.wide + k * step, v[k]);
        FASTXAI_UNROLL for (int64_t p = 0; p < count; ++p) {
          FASTXAI_UNROLL for (int64_t k = 0; k < vectors; ++k) acc[p][k] += s[p * thin + t] * v[k];
        }
      }
    }
  }
  FASTXAI_UNROLL for (int64_t k = 0; k < vectors; ++k) {
    Vector b = {};
    if (bias) load(bias + o + k * step, b);
    FASTXAI_UNROLL for (int64_t p = 0; p < count; ++p) {
      store(y + (row * c.out_width + x + p) * c.wide + o + k * step, acc[p][k] + b);
    }
  }
}

template <int64_t thin, int64_t vectors>
FASTXAI_INLINE void row_out(const ThinConv& c, const float* source, const float* weight, const float* bias, float* y,
                            int64_t row, int64_t o) {
  for (int64_t x = 0; x < c.out_width;) {
    const int64_t left = x - c.padding_w;  // column of the source under tap 0
    if (left >= 0 && left + pixels - 1 + c.kernel_w <= c.width && x + pixels <= c.out_width) {
      span_out<thin, pixels, vectors>(c, source, weight, bias, y, row, x, o, 0, c.kernel_w);
      x += pixels;
    } else {
      const int64_t first = left < 0 ? -left : 0, last = std::min(c.kernel_w, c.width - left);
      span_out<thin, 1, vectors>(c, source, weight, bias, y, row, x, o, first, last);
      ++x;
    }
  }
}

struct Call {
  const ThinConv& conv;
  const float *nu, *weight;
  float* mu;
};

struct CallOut {
  const ThinConv& conv;
  const float *x, *weight, *bias;
  float* y;
};

template <int64_t thin>
FASTXAI_INLINE void whole_row(const CallOut& call, const float* x, float* y, int64_t row) {
  int64_t o = 0;
  for (; o + 2 * step <= call.conv.wide; o += 2 * step) {
    row_out<thin, 2>(call.conv, x, call.weight, call.bias, y, row, o);
  }
  if (o < call.conv.wide) row_out<thin, 1>(call.conv, x, call.weight, call.bias, y, row, o);
}

FASTXAI_CLONES void rows(const CallOut& call, int64_t begin, int64_t end) {
  const ThinConv& c = call.conv;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t image = k / c.out_height, row = k % c.out_height;
    const float* x = call.x + image * c.height * c.width * c.thin;
    float* y = call.y + image * c.out_height * c.out_width * c.wide;
    switch (c.thin) {
      case 1: whole_row<1>(call, x, y, row); break;
      case 2: whole_row<2>(call, x, y, row); break;
      case 3: whole_row<3>(call, x, y, row); break;
      default: whole_row<4>(call, x, y, row);
    }
  }
}

FASTXAI_CLONES void rows(const Call& call, int64_t begin, int64_t end) {
  const ThinConv& c = call.conv;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t image = k / c.height, y = k % c.height;
    const float* nu = call.nu + image * c.out_height * c.out_width * c.wide;
    float* mu = call.mu + image * c.height * c.width * c.thin;
    switch (c.thin) {
      case 1: row<1>(c, nu, call.weight, mu, y); break;
      case 2: row<2>(c, nu, call.weight, mu, y); break;
      case 3: row<3>(c, nu, call.weight, mu, y); break;
      default: row<4>(c, nu, call.weight, mu, y);
    }
  }
}

// `count` rows of pixels, split among the threads.
template <class Work>
void run(const Work& call, int64_t count, int64_t width, int threads) {
  const ThinConv& c = call.conv;
  if (c.thin < 1 || c.thin > 4 || c.wide % step) {
    throw std::invalid_argument("thin_conv needs 1 to 4 thin channels and a multiple of 16 wide ones");
  }
  if (count * width * c.kernel_h * c.kernel_w * c.thin * c.wide < serial) threads = 1;
  parallel_for(count, 1, threads, [&](int64_t begin, int64_t end) { rows(call, begin, end); });
}

}  // namespace

void thin_conv_apply(const ThinConv& conv, const float* x, const float* weight, const float* bias, float* y,
                     int threads) {
  run(CallOut{conv, x, weight, bias, y}, conv.rows * conv.out_height, conv.out_width, threads);
}

void thin_conv_transpose(const ThinConv& conv, const float* nu, const float* weight, float* mu, int threads) {
  run(Call{conv, nu, weight, mu}, conv.rows * conv.height, conv.width, threads);
}

}  // namespace fastxai::cpu

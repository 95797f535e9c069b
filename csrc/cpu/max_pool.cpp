// Channels last: vectors over channels, a window being a list of input pixels; the pull gathers (each input pixel sums
// the windows that chose it), so that every output is written once however the windows overlap.
// Channels first: one plane at a time; the search is a vector over output columns, the rest indexes scalars in cache.
#include "max_pool.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "../math.h"
#include "parallel.h"
#include "taps.h"

namespace fastxai::cpu {
namespace {

// Waking the team costs 2 us, in which one core pools about this many input elements.
constexpr int64_t serial = 1 << 15;
constexpr int64_t chunk = 256;

// Positions and masks are as wide as T, and masks are integers: from bools GCC makes branches, which do not vectorise.
template <class T>
using Bits = typename Float<T>::Bits;

// All ones where the value is above the best so far; a NaN wins, the first of several stays.
template <class T>
FASTXAI_INLINE Bits<T> beats(T value, T best) {
  const Bits<T> above = value <= best ? 0 : ~Bits<T>(0);
  const Bits<T> number = best == best ? ~Bits<T>(0) : 0;
  return above & number;
}

template <class T>
FASTXAI_INLINE void take(Bits<T> mask, T value, Bits<T> code, T& best, Bits<T>& winner) {
  best = from_bits<T>((bits_of(value) & mask) | (bits_of(best) & ~mask));
  winner = (code & mask) | (winner & ~mask);
}

template <class T>
struct Push {
  Pool p;
  bool find;
  const T* x;
  T* y;
  uint8_t* index;
  int64_t image, out_image;  // elements
};

template <int size, class T>
FASTXAI_INLINE void find_fixed(const T* x, const Taps& taps, int64_t channels, T* y, uint8_t* index) {
  const T* pixel[size];
  Bits<T> code[size];
  for (int k = 0; k < size; ++k) pixel[k] = x + taps.offset[k], code[k] = taps.code[k];
  FASTXAI_VECTOR for (int64_t c = 0; c < channels; ++c) {
    T best = pixel[0][c];
    Bits<T> winner = code[0];
    FASTXAI_UNROLL for (int k = 1; k < size; ++k) {
      take(beats(pixel[k][c], best), pixel[k][c], code[k], best, winner);
    }
    y[c] = best;
    index[c] = uint8_t(winner);
  }
}

template <class T>
FASTXAI_INLINE void find_any(const T* x, const Taps& taps, int64_t channels, T* y, uint8_t* index) {
  alignas(64) Bits<T> winner[chunk];
  for (int64_t start = 0; start < channels; start += chunk) {
    const int64_t n = std::min(chunk, channels - start);
    T* best = y + start;
    std::copy_n(x + taps.offset[0] + start, n, best);
    std::fill_n(winner, n, Bits<T>(taps.code[0]));
    for (int k = 1; k < taps.count; ++k) {
      const T* pixel = x + taps.offset[k] + start;
      const Bits<T> code = taps.code[k];
      FASTXAI_VECTOR for (int64_t c = 0; c < n; ++c) {
        take(beats(pixel[c], best[c]), pixel[c], code, best[c], winner[c]);
      }
    }
    FASTXAI_VECTOR for (int64_t c = 0; c < n; ++c) index[start + c] = uint8_t(winner[c]);
  }
}

template <int size, class T>
FASTXAI_INLINE void gather_fixed(const T* x, const Taps& taps, int64_t channels, const uint8_t* index, T* y) {
  const T* pixel[size];
  Bits<T> code[size];
  for (int k = 0; k < size; ++k) pixel[k] = x + taps.offset[k], code[k] = taps.code[k];
  FASTXAI_VECTOR for (int64_t c = 0; c < channels; ++c) {
    const Bits<T> winner = index[c];
    T value = pixel[0][c];
    FASTXAI_UNROLL for (int k = 1; k < size; ++k) value = winner == code[k] ? pixel[k][c] : value;
    y[c] = value;
  }
}

template <class T>
FASTXAI_INLINE void gather_any(const T* x, const Taps& taps, int64_t channels, const uint8_t* index, T* y) {
  for (int k = 0; k < taps.count; ++k) {
    const T* pixel = x + taps.offset[k];
    const Bits<T> code = taps.code[k];
    FASTXAI_VECTOR for (int64_t c = 0; c < channels; ++c) {
      y[c] = (k == 0) | (Bits<T>(index[c]) == code) ? pixel[c] : y[c];
    }
  }
}

// Output rows [begin, end) of all images, channels last.
template <int size, class T>
FASTXAI_INLINE void push_last(const Push<T>& push, int64_t begin, int64_t end) {
  const Pool& p = push.p;
  Taps taps;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / p.out_height, oh = row % p.out_height;
    for (int64_t ow = 0; ow < p.out_width; ++ow) {
      window_taps(p, oh, ow, taps);
      if constexpr (size > 0) pad_taps(taps, size);
      const int64_t at = (row * p.out_width + ow) * p.channels;
      uint8_t* index = push.index + at;
      for (int64_t k = 0; k < p.components; ++k) {
        const T* x = push.x + (k * p.rows + n) * push.image;
        T* y = push.y + k * p.rows * push.out_image + at;
        const bool find = push.find && k == 0;
        if constexpr (size > 0) {
          find ? find_fixed<size>(x, taps, p.channels, y, index) : gather_fixed<size>(x, taps, p.channels, index, y);
        } else {
          find ? find_any(x, taps, p.channels, y, index) : gather_any(x, taps, p.channels, index, y);
        }
      }
    }
  }
}

// One output row of one plane: the first maximum of each window.
template <int fixed_stride, class T>
FASTXAI_INLINE void find_columns(const Pool& p, const T* plane, int64_t oh, T* y, Bits<T>* winner) {
  const int64_t stride = fixed_stride ? fixed_stride : p.stride_w;
  constexpr Bits<T> none = ~Bits<T>(0);
  std::fill_n(winner, p.out_width, none);
  for (int64_t i = 0; i < p.kernel_h; ++i) {
    const int64_t h = oh * p.stride_h - p.padding_h + i * p.dilation_h;
    if (h < 0 || h >= p.height) continue;
    for (int64_t j = 0; j < p.kernel_w; ++j) {
      const int64_t shift = j * p.dilation_w - p.padding_w;  // column = ow * stride + shift
      const int64_t low = shift < 0 ? (-shift + stride - 1) / stride : 0;
      const int64_t high = std::min(p.out_width, p.width > shift ? (p.width - 1 - shift) / stride + 1 : 0);
      const T* row = plane + h * p.width + shift;
      const Bits<T> code = Bits<T>(i * p.kernel_w + j);
      FASTXAI_VECTOR for (int64_t ow = low; ow < high; ++ow) {
        const T value = row[ow * stride];
        const Bits<T> unset = winner[ow] == none ? none : 0;
        take(beats(value, y[ow]) | unset, value, code, y[ow], winner[ow]);
      }
    }
  }
}

// Where the taps of a window lie, relative to its first one.
// Planes [begin, end) of component 0 and the same planes of the others, channels first.
template <class T>
FASTXAI_INLINE void push_first(const Push<T>& push, int64_t begin, int64_t end) {
  const Pool& p = push.p;
  int64_t offset[max_taps];
  plane_offsets(p, offset);
  std::vector<Bits<T>> winner(p.out_width);
  const int64_t in_plane = p.height * p.width, out_plane = p.out_height * p.out_width;
  for (int64_t plane = begin; plane < end; ++plane) {
    uint8_t* index = push.index + plane * out_plane;
    for (int64_t k = 0; k < p.components; ++k) {
      const T* x = push.x + k * p.rows * push.image + plane * in_plane;
      T* y = push.y + k * p.rows * push.out_image + plane * out_plane;
      for (int64_t oh = 0; oh < p.out_height; ++oh) {
        T* out = y + oh * p.out_width;
        uint8_t* chosen = index + oh * p.out_width;
        if (push.find && k == 0) {
          p.stride_w == 1   ? find_columns<1>(p, x, oh, out, winner.data())
          : p.stride_w == 2 ? find_columns<2>(p, x, oh, out, winner.data())
                            : find_columns<0>(p, x, oh, out, winner.data());
          FASTXAI_VECTOR for (int64_t ow = 0; ow < p.out_width; ++ow) chosen[ow] = uint8_t(winner[ow]);
        } else {
          const int64_t corner = (oh * p.stride_h - p.padding_h) * p.width - p.padding_w;
          for (int64_t ow = 0; ow < p.out_width; ++ow) out[ow] = x[corner + ow * p.stride_w + offset[chosen[ow]]];
        }
      }
    }
  }
}

// One axis, seen from the input: coordinate x lies in windows meetings[first[x]] .. meetings[first[x + 1] - 1], each
// named by its output coordinate and by the position of x in it.
struct Axis {
  struct Meeting {
    int64_t out, tap;
  };
  std::vector<int64_t> first;
  std::vector<Meeting> meetings;

  Axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) : first{0} {
    for (int64_t x = 0; x < size; ++x) {
      for (int64_t tap = kernel - 1; tap >= 0; --tap) {
        const int64_t corner = x + padding - tap * dilation, out = corner / stride;
        if (corner >= 0 && corner % stride == 0 && out < out_size) meetings.push_back({out, tap});
      }
      first.push_back(int64_t(meetings.size()));
    }
  }
};

template <class T>
struct Pull {
  Pool p;
  const T* nu;
  const uint8_t* index;
  T* mu;
  int64_t image, out_image;  // elements
  const Axis &rows, &cols;
  bool tiled;
};

FASTXAI_HOST_INLINE void pixel_taps(const Pool& p, const Axis& rows, const Axis& cols, int64_t h, int64_t w,
                                    Taps& taps) {
  taps.count = 0;
  for (int64_t r = rows.first[h]; r < rows.first[h + 1]; ++r) {
    const Axis::Meeting& row = rows.meetings[r];
    for (int64_t c = cols.first[w]; c < cols.first[w + 1]; ++c) {
      const Axis::Meeting& col = cols.meetings[c];
      taps.add((row.out * p.out_width + col.out) * p.channels, row.tap * p.kernel_w + col.tap);
    }
  }
}

// Input rows [begin, end) of all images, channels last.
template <class T>
FASTXAI_INLINE void pull_last(const Pull<T>& pull, int64_t begin, int64_t end) {
  const Pool& p = pull.p;
  Taps taps;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / p.height, h = row % p.height;
    for (int64_t w = 0; w < p.width; ++w) {
      pixel_taps(p, pull.rows, pull.cols, h, w, taps);
      const uint8_t* index = pull.index + n * pull.out_image;
      for (int64_t k = 0; k < p.components; ++k) {
        const T* nu = pull.nu + (k * p.rows + n) * pull.out_image;
        T* mu = pull.mu + k * p.rows * pull.image + (row * p.width + w) * p.channels;
        if (taps.count == 0) std::fill_n(mu, p.channels, T(0));
        for (int tap = 0; tap < taps.count; ++tap) {
          const T* source = nu + taps.offset[tap];
          const uint8_t* chosen = index + taps.offset[tap];
          const Bits<T> code = taps.code[tap];
          if (tap == 0) {
            FASTXAI_VECTOR for (int64_t c = 0; c < p.channels; ++c) mu[c] = chosen[c] == code ? source[c] : T(0);
          } else {
            FASTXAI_VECTOR for (int64_t c = 0; c < p.channels; ++c) mu[c] += chosen[c] == code ? source[c] : T(0);
          }
        }
      }
    }
  }
}

// True if the windows tile the input: each pixel lies in exactly one.
bool tiles(const Pool& p) {
  return p.kernel_h == p.stride_h && p.kernel_w == p.stride_w && p.dilation_h == 1 && p.dilation_w == 1 &&
         p.padding_h == 0 && p.padding_w == 0 && p.out_height * p.kernel_h >= p.height &&
         p.out_width * p.kernel_w >= p.width;
}

// As pull_last where windows tile the input: output rows [begin, end), each window read once (1.7x faster for 2 x 2).
template <class T>
FASTXAI_INLINE void pull_tiles(const Pull<T>& pull, int64_t begin, int64_t end) {
  const Pool& p = pull.p;
  Taps taps;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / p.out_height, oh = row % p.out_height;
    for (int64_t ow = 0; ow < p.out_width; ++ow) {
      window_taps(p, oh, ow, taps);
      const int64_t at = (row * p.out_width + ow) * p.channels;
      const uint8_t* index = pull.index + at;
      for (int64_t k = 0; k < p.components; ++k) {
        const T* nu = pull.nu + k * p.rows * pull.out_image + at;
        T* mu = pull.mu + (k * p.rows + n) * pull.image;
        for (int tap = 0; tap < taps.count; ++tap) {
          T* pixel = mu + taps.offset[tap];
          const Bits<T> code = taps.code[tap];
          FASTXAI_VECTOR for (int64_t c = 0; c < p.channels; ++c) pixel[c] = index[c] == code ? nu[c] : T(0);
        }
      }
    }
  }
}

// Planes [begin, end) of all components, channels first. Rows are zeroed just before the first window reaches them.
template <class T>
FASTXAI_INLINE void pull_first(const Pull<T>& pull, int64_t begin, int64_t end) {
  const Pool& p = pull.p;
  int64_t offset[max_taps];
  plane_offsets(p, offset);
  const int64_t in_plane = p.height * p.width, out_plane = p.out_height * p.out_width, planes = p.rows * p.channels;
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* nu = pull.nu + plane * out_plane;
    const uint8_t* index = pull.index + plane % planes * out_plane;
    T* mu = pull.mu + plane * in_plane;
    int64_t ready = 0;
    for (int64_t oh = 0; oh <= p.out_height; ++oh) {
      const int64_t bottom = oh * p.stride_h - p.padding_h + (p.kernel_h - 1) * p.dilation_h + 1;
      const int64_t reach = oh == p.out_height ? p.height : std::clamp(bottom, ready, p.height);
      std::fill(mu + ready * p.width, mu + reach * p.width, T(0));
      ready = reach;
      if (oh == p.out_height) break;
      T* corner = mu + (oh * p.stride_h - p.padding_h) * p.width - p.padding_w;
      for (int64_t ow = 0; ow < p.out_width; ++ow) {
        corner[ow * p.stride_w + offset[index[oh * p.out_width + ow]]] += nu[oh * p.out_width + ow];
      }
    }
  }
}

template <class T>
FASTXAI_INLINE void push_range(const Push<T>& push, int64_t begin, int64_t end) {
  switch (push.p.channels_last ? push.p.kernel_h * push.p.kernel_w : 0) {
    case 0: return push_first(push, begin, end);
    case 4: return push_last<4>(push, begin, end);
    case 9: return push_last<9>(push, begin, end);
    default: return push_last<0>(push, begin, end);
  }
}

template <class T>
FASTXAI_INLINE void pull_range(const Pull<T>& pull, int64_t begin, int64_t end) {
  if (!pull.p.channels_last) {
    pull_first(pull, begin, end);
  } else if (pull.tiled) {
    pull_tiles(pull, begin, end);
  } else {
    pull_last(pull, begin, end);
  }
}

FASTXAI_CLONES void push_clone(const Push<float>& p, int64_t begin, int64_t end) { push_range(p, begin, end); }
FASTXAI_CLONES void push_clone(const Push<double>& p, int64_t begin, int64_t end) { push_range(p, begin, end); }
FASTXAI_CLONES void pull_clone(const Pull<float>& p, int64_t begin, int64_t end) { pull_range(p, begin, end); }
FASTXAI_CLONES void pull_clone(const Pull<double>& p, int64_t begin, int64_t end) { pull_range(p, begin, end); }

}  // namespace

template <class T>
void max_pool_push(const Pool& p, bool find, const T* x, T* y, uint8_t* index, int threads) {
  const int64_t image = p.channels * p.height * p.width, out_image = p.channels * p.out_height * p.out_width;
  const Push<T> push{p, find, x, y, index, image, out_image};
  const int useful = p.components * p.rows * image < serial ? 1 : threads;
  parallel_for(p.rows * (p.channels_last ? p.out_height : p.channels), 1, useful,
               [&](int64_t begin, int64_t end) { push_clone(push, begin, end); });
}

template <class T>
void max_pool_pull(const Pool& p, const T* nu, const uint8_t* index, T* mu, int threads) {
  const int64_t image = p.channels * p.height * p.width, out_image = p.channels * p.out_height * p.out_width;
  const Axis rows(p.height, p.out_height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h);
  const Axis cols(p.width, p.out_width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w);
  const Pull<T> pull{p, nu, index, mu, image, out_image, rows, cols, tiles(p)};
  const int useful = p.components * p.rows * image < serial ? 1 : threads;
  const int64_t last = pull.tiled ? p.out_height : p.height, first = p.channels * p.components;
  parallel_for(p.rows * (p.channels_last ? last : first), 1, useful,
               [&](int64_t begin, int64_t end) { pull_clone(pull, begin, end); });
}

#define FASTXAI_INSTANTIATE(T)                                                          \
  template void max_pool_push(const Pool&, bool, const T*, T*, uint8_t*, int);          \
  template void max_pool_pull(const Pool&, const T*, const uint8_t*, T*, int);
FASTXAI_INSTANTIATE(float)
FASTXAI_INSTANTIATE(double)

}  // namespace fastxai::cpu

// Which input pixels a pooling window joins to its output.
#pragma once

#include <cstdint>

#include "../math.h"
#include "max_pool.h"

namespace fastxai::cpu {

constexpr int max_taps = 255;

// A pixel of the other side: its offset from the image, and the position in the kernel that joins the two.
struct Taps {
  int count;
  int64_t offset[max_taps];
  int code[max_taps];

  FASTXAI_HOST_INLINE void add(int64_t at, int64_t position) {
    offset[count] = at;
    code[count++] = int(position);
  }
};

FASTXAI_HOST_INLINE void window_taps(const Pool& p, int64_t oh, int64_t ow, Taps& taps) {
  taps.count = 0;
  for (int64_t i = 0; i < p.kernel_h; ++i) {
    const int64_t h = oh * p.stride_h - p.padding_h + i * p.dilation_h;
    if (h < 0 || h >= p.height) continue;
    for (int64_t j = 0; j < p.kernel_w; ++j) {
      const int64_t w = ow * p.stride_w - p.padding_w + j * p.dilation_w;
      if (w >= 0 && w < p.width) taps.add((h * p.width + w) * p.channels, i * p.kernel_w + j);
    }
  }
}

// Repeats the first tap up to a fixed count: what was seen before cannot win, and when gathered it is the same value.
FASTXAI_HOST_INLINE void pad_taps(Taps& taps, int size) {
  while (taps.count < size) taps.add(taps.offset[0], taps.code[0]);
}

// Where each position of a window lies from its corner, in a plane stored channels first.
FASTXAI_HOST_INLINE void plane_offsets(const Pool& p, int64_t* offset) {
  for (int64_t i = 0; i < p.kernel_h; ++i) {
    for (int64_t j = 0; j < p.kernel_w; ++j) {
      offset[i * p.kernel_w + j] = i * p.dilation_h * p.width + j * p.dilation_w;
    }
  }
}

}  // namespace fastxai::cpu

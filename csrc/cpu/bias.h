// A channel bias over a flat range of elements, channels first or last.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../math.h"
#include "parallel.h"

namespace fastxai::cpu {

// Element i has channel (i / inner) % channels. No bias: values is null.
template <class T>
struct Bias {
  const T* values;
  int64_t channels, inner;
};

// x + bias of elements [start, start + n), into out, which may be x.
template <class T>
FASTXAI_INLINE void add_bias(const T* x, const Bias<T>& bias, int64_t start, int64_t n, T* out) {
  int64_t channel = start / bias.inner % bias.channels, offset = start % bias.inner;
  for (int64_t i = 0; i < n;) {
    const int64_t run = std::min(n - i, bias.inner == 1 ? bias.channels - channel : bias.inner - offset);
    const T *source = x + i, *row = bias.values + channel;
    T* target = out + i;
    if (bias.inner == 1) {
      FASTXAI_VECTOR for (int64_t j = 0; j < run; ++j) target[j] = source[j] + row[j];
    } else {
      const T b = *row;
      FASTXAI_VECTOR for (int64_t j = 0; j < run; ++j) target[j] = source[j] + b;
    }
    i += run;
    offset = 0;
    channel = bias.inner == 1 ? 0 : channel + 1 == bias.channels ? 0 : channel + 1;
  }
}

// Short runs of equal channel would not vectorise: the same bias spelled out over several periods, held by pattern.
template <class T>
Bias<T> spelled_out(const Bias<T>& bias, int64_t block, std::vector<T>& pattern) {
  if (!bias.values || (bias.inner == 1 ? bias.channels >= 64 : bias.inner >= 16)) return bias;
  const int64_t period = bias.channels * bias.inner;
  pattern.resize(period * std::max<int64_t>(1, block / period));
  for (size_t i = 0; i < pattern.size(); ++i) pattern[i] = bias.values[i / bias.inner % bias.channels];
  return {pattern.data(), int64_t(pattern.size()), 1};
}

}  // namespace fastxai::cpu

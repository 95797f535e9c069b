// Transposed convolution to few channels on the CPU; the contract is in fastxai/kernels/thin_conv.py.
#pragma once

#include <cstdint>

namespace fastxai::cpu {

// Stride and dilation 1. `wide` is the number of channels of nu (a multiple of 16), `thin` that of the result (1 to 4).
struct ThinConv {
  int64_t rows, height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, padding_h, padding_w;
  int64_t thin, wide;
};

// nu: [rows, out_height, out_width, wide]; weight: [kernel_h * kernel_w, thin, wide]; mu: [rows, height, width, thin].
void thin_conv_transpose(const ThinConv& conv, const float* nu, const float* weight, float* mu, int threads);

}  // namespace fastxai::cpu

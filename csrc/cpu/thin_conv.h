// Convolution from few channels and its transpose on the CPU; the contract is in fastxai/kernels/thin_conv.py.
#pragma once

#include <cstdint>

namespace fastxai::cpu {

// Stride and dilation 1. `wide` is the number of channels of y and nu (a multiple of 16), `thin` that of x and mu (1 to
// 4).
struct ThinConv {
  int64_t rows, height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, padding_h, padding_w;
  int64_t thin, wide;
};

// x: [rows, height, width, thin]; weight as below; bias: [wide] or null; y: [rows, out_height, out_width, wide].
void thin_conv_apply(const ThinConv& conv, const float* x, const float* weight, const float* bias, float* y,
                     int threads);

// nu: [rows, out_height, out_width, wide]; weight: [kernel_h * kernel_w, thin, wide]; mu: [rows, height, width, thin].
void thin_conv_transpose(const ThinConv& conv, const float* nu, const float* weight, float* mu, int threads);

}  // namespace fastxai::cpu

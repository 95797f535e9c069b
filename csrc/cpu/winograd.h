// 3x3 and 5x5 convolutions by Winograd's tiles on the CPU; the contract is in fastxai/kernels/winograd.py.
#pragma once

#include <cstdint>

namespace fastxai::cpu {

// Stride, dilation and groups 1; a kernel of 3 pixels each way with tiles of 2 or 4 outputs, or of 5 pixels with tiles
// of 2; `channels` of x and `outputs` of y in sixteens.
struct Winograd {
  int64_t rows, height, width, out_height, out_width;
  int64_t padding_h, padding_w;
  int64_t channels, outputs, kernel, tile;
};

// x: [rows, height, width, channels]; u: the packed kernel; bias: [outputs] or null; y: [rows, out_height, out_width,
// outputs]. `registers` is at most vector_registers().
void winograd_conv(const Winograd& conv, const float* x, const float* u, const float* bias, float* y, int registers,
                   int threads);

// Where z is small: below least[outputs] times the largest |of| that its tile mixes. z is y and `of` is x, or another
// result and what it came from.
struct Small {
  const float *least, *of, *z;
};

// y as above: sums anew what is small, one product after the other. weight: [outputs, kernel, kernel, channels].
void winograd_refine(const Winograd& conv, const Small& where, const float* x, const float* weight, const float* bias,
                     float* y, int threads);

// du: [pieces, size of u], sums over the tiles of each piece of B^T d B (x) A nu A^T; nu as y above.
void winograd_weight_grad(const Winograd& conv, const float* x, const float* nu, float* du, int pieces, int registers);

}  // namespace fastxai::cpu

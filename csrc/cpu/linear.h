// Products of a dense layer on the CPU, float32; the contract is in fastxai/kernels/linear.py.
#pragma once

#include <cstdint>

namespace fastxai::cpu {

struct Linear {
  int64_t rows, inputs, outputs;
};

// x: [rows, inputs]; weight: [outputs, inputs]; bias: [outputs] or null; y: [rows, outputs]. `registers` is 32 or 16.
void linear_apply(const Linear& layer, const float* x, const float* weight, const float* bias, float* y, int registers,
                  int threads);

// nu: [rows, outputs]; mu: [rows, inputs].
void linear_transpose(const Linear& layer, const float* nu, const float* weight, float* mu, int registers, int threads);

// grad: [outputs, inputs], the sum over rows of nu (x) x.
void linear_weight_grad(const Linear& layer, const float* nu, const float* x, float* grad, int registers, int threads);

}  // namespace fastxai::cpu

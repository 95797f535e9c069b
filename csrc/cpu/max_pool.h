// Max-pooling of jets on the CPU; the contract is in fastxai/kernels/max_pool.py. T is float or double.
#pragma once

#include <cstdint>

namespace fastxai::cpu {

// Components and rows lie side by side: a tensor holds components * rows images of `channels` planes. Every window
// holds at least one input position.
struct Pool {
  int64_t components, rows, channels;
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  bool channels_last;
};

// x: input images, y: output images, index: rows * channels * out_height * out_width, in the format of x. With
// `find`, component 0 fills index; without, index is read and every component is gathered.
template <class T>
void max_pool_push(const Pool& pool, bool find, const T* x, T* y, uint8_t* index, int threads);

// nu: output images, mu: input images, of which every element is written.
template <class T>
void max_pool_pull(const Pool& pool, const T* nu, const uint8_t* index, T* mu, int threads);

}  // namespace fastxai::cpu

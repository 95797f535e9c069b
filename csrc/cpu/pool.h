// Memory of large tensors, kept for the next one of about the same size; the contract is in fastxai/kernels/_memory.py.
#pragma once

#include <cstdint>
#include <vector>

namespace fastxai::cpu {

// Returns a DLManagedTensor of uninitialised memory, without a version, or null where there is no memory; its deleter
// gives the memory back. `code` and `bits` are DLPack's type.
void* pool_tensor(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int64_t bytes, int code,
                  int bits);

// What becomes of a tensor that nobody took.
void pool_discard(void* tensor);

// Bytes that lie unused, and a call that gives them to the system.
int64_t pool_unused();
void pool_clear();

}  // namespace fastxai::cpu

// The pair counts of Kendall's tau-b on the CPU; the contract is in fastxai/metrics/kendall_tau.py. T is float or double.
#pragma once

#include <cstdint>

namespace fastxai::cpu {

// a, b: [samples, size], size below 2^31. counts: [samples, 3]: concordant minus discordant pairs, pairs not tied in a,
// pairs not tied in b; each of the last two is -1 where its operand has a NaN.
template <class T>
void kendall(int64_t samples, int64_t size, const T* a, const T* b, int64_t* counts, int threads);

}  // namespace fastxai::cpu

// Loops over the threads of the OpenMP runtime that torch has already loaded.
#pragma once

#include <cstdint>
#include <type_traits>

// Marks a loop whose pointers are equal or disjoint: without it the compiler's run-time test for overlap would send the
// in-place calls (mu over nu) to scalar code.
#if defined(__clang__)
#define FASTXAI_VECTOR _Pragma("clang loop vectorize(assume_safety)")
#define FASTXAI_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define FASTXAI_VECTOR _Pragma("GCC ivdep")
#define FASTXAI_UNROLL _Pragma("GCC unroll 16")
#else
#define FASTXAI_VECTOR
#define FASTXAI_UNROLL
#endif

// One compiled copy per instruction set, chosen when the library loads. Only GCC on glibc does this with ifunc.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12
#define FASTXAI_HAS_CLONES
#define FASTXAI_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTXAI_CLONES
#endif

namespace fastxai::cpu {

using Task = void (*)(const void* context, int64_t begin, int64_t end);

// Runs task over [0, count) in at most `threads` contiguous pieces whose inner bounds are multiples of `grain`.
void run_parallel(Task task, const void* context, int64_t count, int64_t grain, int threads);

// The name of the borrowed runtime's entry point, or "" if every loop is serial.
const char* parallel_runtime();

template <class F>
void parallel_for(int64_t count, int64_t grain, int threads, const F& f) {
  if (threads <= 1) {
    if (count > 0) f(int64_t(0), count);
    return;
  }
  run_parallel([](const void* context, int64_t begin, int64_t end) { (*static_cast<const F*>(context))(begin, end); },
               &f, count, grain, threads);
}

}  // namespace fastxai::cpu

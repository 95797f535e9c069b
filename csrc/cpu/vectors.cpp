#include "vectors.h"

namespace fastxai::cpu {

int vector_registers() {
#ifdef FASTXAI_HAS_CLONES
  if (__builtin_cpu_supports("x86-64-v4")) return 32;
  if (__builtin_cpu_supports("x86-64-v3")) return 16;
#endif
  return 0;
}

}  // namespace fastxai::cpu

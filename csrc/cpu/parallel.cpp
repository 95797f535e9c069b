// Linking OpenMP would load a second runtime beside the one torch brings: two pools of threads then fight for the same
// cores, and each call wakes a cold pool. So torch's own entry points are looked up by name at first use. GOMP_parallel
// is exported by GNU's runtime and, for compatibility, by LLVM's and Intel's on Linux.
#include "parallel.h"

#include <algorithm>
#include <cstring>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif

namespace fastxai::cpu {
namespace {

struct Runtime {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread_num)() = nullptr;
  int (*num_threads)() = nullptr;
  int (*in_parallel)() = nullptr;

  bool complete() const { return parallel && thread_num && num_threads && in_parallel; }
};

#if defined(__linux__)
Runtime look_up(void* library) {
  Runtime r;
  r.parallel = reinterpret_cast<decltype(r.parallel)>(dlsym(library, "GOMP_parallel"));
  r.thread_num = reinterpret_cast<decltype(r.thread_num)>(dlsym(library, "omp_get_thread_num"));
  r.num_threads = reinterpret_cast<decltype(r.num_threads)>(dlsym(library, "omp_get_num_threads"));
  r.in_parallel = reinterpret_cast<decltype(r.in_parallel)>(dlsym(library, "omp_in_parallel"));
  return r;
}

// torch may have been loaded with local visibility: then the runtime is loaded but not in the global scope.
int look_in_object(dl_phdr_info* info, size_t, void* out) {
  const char* base = info->dlpi_name ? std::strrchr(info->dlpi_name, '/') : nullptr;
  base = base ? base + 1 : "";
  if (std::strncmp(base, "libgomp", 7) && std::strncmp(base, "libiomp", 7) && std::strncmp(base, "libomp", 6)) return 0;
  void* library = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return 0;
  const Runtime found = look_up(library);
  dlclose(library);  // RTLD_NOLOAD only raised the count: the object stays for as long as torch does
  if (!found.complete()) return 0;
  *static_cast<Runtime*>(out) = found;
  return 1;
}

Runtime find() {
  Runtime r = look_up(RTLD_DEFAULT);
  if (!r.complete()) dl_iterate_phdr(look_in_object, &r);
  return r.complete() ? r : Runtime{};
}
#else
Runtime find() { return {}; }
#endif

const Runtime& runtime() {
  static const Runtime found = find();
  return found;
}

struct Job {
  Task task;
  const void* context;
  int64_t count, grain;
};

void piece(void* data) {
  const Job& job = *static_cast<const Job*>(data);
  const int64_t grains = (job.count + job.grain - 1) / job.grain;
  const int64_t size = runtime().num_threads(), rank = runtime().thread_num();
  const int64_t begin = grains * rank / size * job.grain;
  const int64_t end = std::min(grains * (rank + 1) / size * job.grain, job.count);
  if (begin < end) job.task(job.context, begin, end);
}

}  // namespace

void run_parallel(Task task, const void* context, int64_t count, int64_t grain, int threads) {
  const int64_t pieces = std::min<int64_t>(threads, (count + grain - 1) / grain);
  if (pieces > 1 && runtime().complete() && !runtime().in_parallel()) {
    Job job{task, context, count, grain};
    runtime().parallel(piece, &job, unsigned(pieces), 0);
  } else if (count > 0) {
    task(context, 0, count);
  }
}

const char* parallel_runtime() { return runtime().complete() ? "GOMP_parallel" : ""; }

}  // namespace fastxai::cpu

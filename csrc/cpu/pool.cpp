// glibc gives a freed block above 32 MiB back to the system, and what is free beyond 64 MiB at the end of its heap; the
// next one faults in page by page.
#include "pool.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define FASTXAI_FORKS
#endif

namespace fastxai::cpu {
namespace {

// DLPack 0.x, whose layout is fixed: https://dmlc.github.io/dlpack/latest/c_api.html.
struct Tensor {
  void* data;
  int32_t device_type, device;
  int32_t dims;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t offset;
};
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

static_assert(sizeof(void*) != 8 || (sizeof(Tensor) == 48 && sizeof(Managed) == 64));

constexpr int32_t cpu_device = 1;
// A cache line and a page; what is asked for is rounded up, so that sizes that are nearly alike share blocks.
constexpr int64_t alignment = 64, page = 4096;
// Unused bytes that are kept, and the share of a block that may be wasted.
constexpr int64_t most = 256 << 20;
constexpr int64_t slack = 8;

struct Block {
  void* data;
  int64_t bytes;
};

class Pool {
 public:
  Pool() { unused_.reserve(4096); }

  // No memory: what lies unused goes first, then data is null.
  Block take(int64_t bytes) {
    bytes = (std::max<int64_t>(bytes, 1) + page - 1) / page * page;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      auto best = unused_.end();
      for (auto block = unused_.begin(); block != unused_.end(); ++block) {
        const bool fits = block->bytes >= bytes && block->bytes <= bytes + bytes / slack;
        if (fits && (best == unused_.end() || block->bytes <= best->bytes)) best = block;
      }
      if (best != unused_.end()) {
        const Block found = *best;
        remove(best);
        return found;
      }
    }
    Block made{allocate(bytes), bytes};
    if (!made.data) {
      clear();
      made.data = allocate(bytes);
    }
    return made;
  }

  // Called while torch frees a tensor: nothing may throw, so nothing is allocated.
  void give(const Block& block) noexcept {
    if (block.bytes > most) return release(block);
    const std::lock_guard<std::mutex> lock(mutex);
    while (held_ + block.bytes > most || unused_.size() == unused_.capacity()) drop(unused_.begin());
    unused_.push_back(block);
    held_ += block.bytes;
  }

  int64_t held() {
    const std::lock_guard<std::mutex> lock(mutex);
    return held_;
  }

  void clear() noexcept {
    const std::lock_guard<std::mutex> lock(mutex);
    while (!unused_.empty()) drop(unused_.end() - 1);
  }

  std::mutex mutex;

 private:
  // The longest unused first.
  using Blocks = std::vector<Block>;

  static void* allocate(int64_t bytes) noexcept {
    return ::operator new(static_cast<size_t>(bytes), std::align_val_t{alignment}, std::nothrow);
  }
  static void release(const Block& block) noexcept { ::operator delete(block.data, std::align_val_t{alignment}); }
  void remove(Blocks::iterator block) noexcept {
    held_ -= block->bytes;
    unused_.erase(block);
  }
  void drop(Blocks::iterator block) noexcept {
    release(*block);
    remove(block);
  }

  Blocks unused_;
  int64_t held_ = 0;
};

// Never destroyed: tensors outlive static objects. A child of fork() finds the lock open.
Pool& pool() {
  static Pool* const it = [] {
    Pool* const made = new Pool;
#ifdef FASTXAI_FORKS
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
#endif
    return made;
  }();
  return *it;
}

struct Owner {
  Managed managed;
  Block block;
  std::vector<int64_t> shape, strides;
};

void discard(Managed* managed) {
  const std::unique_ptr<Owner> owner(static_cast<Owner*>(managed->context));
  pool().give(owner->block);
}

}  // namespace

void* pool_tensor(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int64_t bytes, int code,
                  int bits) {
  std::unique_ptr<Owner> owner(new Owner{{}, {}, shape, strides});
  owner->block = pool().take(bytes);
  if (!owner->block.data) return nullptr;
  owner->managed.tensor = {owner->block.data,
                           cpu_device,
                           0,
                           static_cast<int32_t>(shape.size()),
                           static_cast<uint8_t>(code),
                           static_cast<uint8_t>(bits),
                           1,
                           owner->shape.data(),
                           owner->strides.data(),
                           0};
  owner->managed.context = owner.get();
  owner->managed.deleter = &discard;
  return &owner.release()->managed;
}

void pool_discard(void* tensor) { discard(static_cast<Managed*>(tensor)); }

int64_t pool_unused() { return pool().held(); }

void pool_clear() { pool().clear(); }

}  // namespace fastxai::cpu

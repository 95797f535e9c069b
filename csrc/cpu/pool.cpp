// glibc gives a freed block beyond 64 MiB back to the system, and the next one of the size faults in page by page.
#include "pool.h"

#include <algorithm>
#include <mutex>
#include <new>

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
  Block take(int64_t bytes) {
    bytes = (std::max<int64_t>(bytes, 1) + page - 1) / page * page;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = unused_.end();
      for (auto block = unused_.begin(); block != unused_.end(); ++block) {
        const bool fits = block->bytes >= bytes && block->bytes <= bytes + bytes / slack;
        if (fits && (best == unused_.end() || block->bytes <= best->bytes)) best = block;
      }
      if (best != unused_.end()) {
        const Block found = *best;
        unused_.erase(best);
        held_ -= found.bytes;
        return found;
      }
    }
    return {::operator new(static_cast<size_t>(bytes), std::align_val_t{alignment}), bytes};
  }

  void give(const Block& block) {
    std::vector<Block> old;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      unused_.push_back(block);
      held_ += block.bytes;
      auto kept = unused_.begin();
      for (; held_ > most; ++kept) {
        old.push_back(*kept);
        held_ -= kept->bytes;
      }
      unused_.erase(unused_.begin(), kept);
    }
    release(old);
  }

  int64_t held() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

  void clear() {
    std::vector<Block> old;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      old.swap(unused_);
      held_ = 0;
    }
    release(old);
  }

 private:
  static void release(const std::vector<Block>& blocks) {
    for (const Block& block : blocks) ::operator delete(block.data, std::align_val_t{alignment});
  }

  std::mutex mutex_;
  // The longest unused first.
  std::vector<Block> unused_;
  int64_t held_ = 0;
};

// Never destroyed: tensors outlive static objects.
Pool& pool() {
  static Pool* const it = new Pool;
  return *it;
}

struct Owner {
  Managed managed;
  Block block;
  std::vector<int64_t> shape, strides;
};

void discard(Managed* managed) {
  Owner* owner = static_cast<Owner*>(managed->context);
  pool().give(owner->block);
  delete owner;
}

}  // namespace

void* pool_tensor(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int64_t bytes, int code,
                  int bits) {
  Owner* owner = new Owner{{}, pool().take(bytes), shape, strides};
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
  owner->managed.context = owner;
  owner->managed.deleter = &discard;
  return &owner->managed;
}

void pool_discard(void* tensor) { discard(static_cast<Managed*>(tensor)); }

int64_t pool_unused() { return pool().held(); }

void pool_clear() { pool().clear(); }

}  // namespace fastxai::cpu

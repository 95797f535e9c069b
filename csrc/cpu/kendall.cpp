// The rank of a value is the number of strictly smaller ones, so a sum of ranks is the number of pairs without a tie.
// Two stable radix sorts, by b and then by a, leave the ranks of b in order of (a, b); discordant pairs are that
// sequence's inversions, which a tree of counters with sixteen branches finds without sorting again.
#include "kendall.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "../math.h"
#include "parallel.h"

namespace fastxai::cpu {
namespace {

constexpr int radix = 256;

template <class T>
using Bits = typename Float<T>::Bits;

// What is sorted: the upper half of a double's key, the whole of a float's, carrying where the value lies.
struct Item {
  uint32_t head, index;
};

// An integer in the order of the values, with one image for both zeros.
template <class T>
FASTXAI_INLINE Bits<T> ordered(T value) {
  const Bits<T> bits = bits_of(value + T(0));
  return bits & Float<T>::sign ? ~bits : bits | Float<T>::sign;
}

template <class T>
FASTXAI_INLINE Item item_of(const T* values, uint32_t index) {
  return {uint32_t(ordered(values[index]) >> (8 * sizeof(T) - 32)), index};
}

template <class T>
FASTXAI_INLINE Bits<T> key_of(const T* values, Item item) {
  if constexpr (sizeof(T) == sizeof(item.head)) return item.head;
  return ordered(values[item.index]);
}

// Counts of earlier elements by the next four bits of their rank: above[d] of them have more than d there.
struct alignas(64) Node {
  uint32_t above[16];
};

// below[d][j] is j < d: GCC vectorises a load of it, not the comparison.
struct Below {
  alignas(64) uint32_t row[16][16];
  constexpr Below() : row{} {
    for (int d = 0; d < 16; ++d) {
      for (int j = 0; j < d; ++j) row[d][j] = 1;
    }
  }
};
constexpr Below below;

struct Scratch {
  std::unique_ptr<Item[]> items, spare;
  std::unique_ptr<uint32_t[]> rank, sorted;  // of b, in the order of the sample and of (a, b)
  std::vector<Node> tree;
  std::vector<int64_t> levels;  // where each level begins in the tree, leaves first

  explicit Scratch(int64_t size)
      : items(new Item[size]), spare(new Item[size]), rank(new uint32_t[size]), sorted(new uint32_t[size]) {
    int64_t nodes = 0, width = size;
    do {
      levels.push_back(nodes);
      width = (width + 15) / 16;
      nodes += width;
    } while (width > 1);
    tree.resize(nodes);
  }
};

// Puts runs of equal heads in the order of their values. Few doubles share a head, unless they are equal.
FASTXAI_INLINE void settle(const double* values, Item* items, int64_t size) {
  const auto below = [&](Item x, Item y) { return ordered(values[x.index]) < ordered(values[y.index]); };
  for (int64_t begin = 0, end; begin < size; begin = end) {
    bool inverted = false;
    for (end = begin + 1; end < size && items[end].head == items[begin].head; ++end) {
      inverted |= below(items[end], items[end - 1]);
    }
    if (inverted) std::stable_sort(items + begin, items + end, below);
  }
}

// Sorts s.items by value, stably, a byte at a time: a byte that all heads share needs no pass.
template <class T>
FASTXAI_INLINE void sort(const T* values, Scratch& s, int64_t size) {
  uint32_t first[4][radix] = {};
  for (int64_t i = 0; i < size; ++i) {
    FASTXAI_UNROLL for (int d = 0; d < 4; ++d) ++first[d][s.items[i].head >> (8 * d) & 0xff];
  }
  for (int d = 0; d < 4; ++d) {
    uint32_t* at = first[d];
    if (at[s.items[0].head >> (8 * d) & 0xff] == size) continue;
    uint32_t sum = 0;
    for (int v = 0; v < radix; ++v) {
      const uint32_t count = at[v];
      at[v] = sum;
      sum += count;
    }
    const Item* from = s.items.get();
    Item* to = s.spare.get();
    for (int64_t i = 0; i < size; ++i) to[at[from[i].head >> (8 * d) & 0xff]++] = from[i];
    s.items.swap(s.spare);
  }
  if constexpr (sizeof(T) == 8) settle(values, s.items.get(), size);
}

// True if a value is NaN: sorted, those lie beyond the infinities.
template <class T>
FASTXAI_INLINE bool has_nan(const T* values, const Scratch& s, int64_t size) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  return key_of(values, s.items[0]) < ordered(-infinity) || key_of(values, s.items[size - 1]) > ordered(infinity);
}

// Pairs i < j with ranks[i] > ranks[j], all below size.
FASTXAI_INLINE int64_t inversions(const uint32_t* ranks, Scratch& s, int64_t size) {
  std::fill(s.tree.begin(), s.tree.end(), Node{});
  const int levels = int(s.levels.size());
  int64_t found = 0;
  for (int64_t i = 0; i < size; ++i) {
    uint32_t rest = ranks[i];
    for (int level = 0; level < levels; ++level) {
      const uint32_t digit = rest & 15;
      rest >>= 4;
      uint32_t* above = s.tree[s.levels[level] + rest].above;
      found += above[digit];
      for (int j = 0; j < 16; ++j) above[j] += below.row[digit][j];
    }
  }
  return found;
}

template <class T>
FASTXAI_INLINE void count(const T* a, const T* b, int64_t size, Scratch& s, int64_t* counts) {
  for (int64_t i = 0; i < size; ++i) s.items[i] = item_of(b, uint32_t(i));
  sort(b, s, size);
  const bool nan_b = has_nan(b, s, size);
  int64_t untied_b = 0, untied_a = 0, untied_joint = 0;
  Bits<T> run = key_of(b, s.items[0]);
  for (int64_t i = 0, rank = 0; i < size; ++i) {
    const uint32_t index = s.items[i].index;
    const Bits<T> key = key_of(b, s.items[i]);
    rank = key == run ? rank : i;
    run = key;
    untied_b += rank;
    s.rank[index] = uint32_t(rank);
    s.items[i] = item_of(a, index);
  }
  sort(a, s, size);
  const bool nan_a = has_nan(a, s, size);
  run = key_of(a, s.items[0]);
  uint32_t last = s.rank[s.items[0].index];
  for (int64_t i = 0, rank = 0, joint = 0; i < size; ++i) {
    const Bits<T> key = key_of(a, s.items[i]);
    const uint32_t rank_b = s.sorted[i] = s.rank[s.items[i].index];
    rank = key == run ? rank : i;
    joint = key == run && rank_b == last ? joint : i;
    run = key;
    last = rank_b;
    untied_a += rank;
    untied_joint += joint;
  }
  counts[0] = untied_a + untied_b - untied_joint - 2 * inversions(s.sorted.get(), s, size);
  counts[1] = nan_a ? -1 : untied_a;
  counts[2] = nan_b ? -1 : untied_b;
}

template <class T>
struct Work {
  int64_t size;
  const T *a, *b;
  int64_t* counts;
};

template <class T>
FASTXAI_INLINE void count_range(const Work<T>& w, Scratch& s, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) count(w.a + n * w.size, w.b + n * w.size, w.size, s, w.counts + 3 * n);
}

FASTXAI_CLONES void count_clone(const Work<float>& w, Scratch& s, int64_t begin, int64_t end) {
  count_range(w, s, begin, end);
}
FASTXAI_CLONES void count_clone(const Work<double>& w, Scratch& s, int64_t begin, int64_t end) {
  count_range(w, s, begin, end);
}

}  // namespace

template <class T>
void kendall(int64_t samples, int64_t size, const T* a, const T* b, int64_t* counts, int threads) {
  const Work<T> work{size, a, b, counts};
  parallel_for(samples, 1, threads, [&](int64_t begin, int64_t end) {
    Scratch scratch(size);
    count_clone(work, scratch, begin, end);
  });
}

template void kendall(int64_t, int64_t, const float*, const float*, int64_t*, int);
template void kendall(int64_t, int64_t, const double*, const double*, int64_t*, int);

}  // namespace fastxai::cpu

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

// What is sorted: by key, carrying an index or a rank.
template <class T>
struct Item {
  Bits<T> key;
  uint32_t load;
};

// An integer in the order of the values, with one image for both zeros.
template <class T>
FASTXAI_INLINE Bits<T> ordered(T value) {
  const Bits<T> bits = bits_of(value + T(0));
  return bits & Float<T>::sign ? ~bits : bits | Float<T>::sign;
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

template <class T>
struct Scratch {
  std::unique_ptr<Item<T>[]> items, spare;
  std::vector<Node> tree;
  std::vector<int64_t> levels;  // where each level begins in the tree, leaves first

  explicit Scratch(int64_t size) : items(new Item<T>[size]), spare(new Item<T>[size]) {
    int64_t nodes = 0, width = size;
    do {
      levels.push_back(nodes);
      width = (width + 15) / 16;
      nodes += width;
    } while (width > 1);
    tree.resize(nodes);
  }
};

// Sorts by key, stably, and leaves the result in s.items. A digit that all keys share needs no pass.
template <class T>
FASTXAI_INLINE void sort(Scratch<T>& s, int64_t size) {
  constexpr int digits = sizeof(Bits<T>);
  uint32_t first[digits][radix] = {};
  for (int64_t i = 0; i < size; ++i) {
    FASTXAI_UNROLL for (int d = 0; d < digits; ++d) ++first[d][s.items[i].key >> (8 * d) & 0xff];
  }
  for (int d = 0; d < digits; ++d) {
    uint32_t* at = first[d];
    if (at[s.items[0].key >> (8 * d) & 0xff] == size) continue;
    uint32_t sum = 0;
    for (int v = 0; v < radix; ++v) {
      const uint32_t count = at[v];
      at[v] = sum;
      sum += count;
    }
    const Item<T>* from = s.items.get();
    Item<T>* to = s.spare.get();
    for (int64_t i = 0; i < size; ++i) to[at[from[i].key >> (8 * d) & 0xff]++] = from[i];
    s.items.swap(s.spare);
  }
}

// True if a key is that of a NaN: sorted, those lie beyond the infinities.
template <class T>
FASTXAI_INLINE bool has_nan(const Scratch<T>& s, int64_t size) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  return s.items[0].key < ordered(-infinity) || s.items[size - 1].key > ordered(infinity);
}

// Pairs i < j of the carried ranks, all below size, with rank i > rank j.
template <class T>
FASTXAI_INLINE int64_t inversions(Scratch<T>& s, int64_t size) {
  std::fill(s.tree.begin(), s.tree.end(), Node{});
  const int levels = int(s.levels.size());
  int64_t found = 0;
  for (int64_t i = 0; i < size; ++i) {
    uint32_t rest = s.items[i].load;
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
FASTXAI_INLINE void count(const T* a, const T* b, int64_t size, Scratch<T>& s, int64_t* counts) {
  for (int64_t i = 0; i < size; ++i) s.items[i] = {ordered(b[i]), uint32_t(i)};
  sort(s, size);
  const bool nan_b = has_nan(s, size);
  int64_t untied_b = 0, untied_a = 0, untied_joint = 0;
  Bits<T> run = s.items[0].key;
  for (int64_t i = 0, rank = 0; i < size; ++i) {
    Item<T>& item = s.items[i];
    rank = item.key == run ? rank : i;
    run = item.key;
    untied_b += rank;
    item = {ordered(a[item.load]), uint32_t(rank)};
  }
  sort(s, size);
  const bool nan_a = has_nan(s, size);
  Item<T> last = s.items[0];
  for (int64_t i = 0, rank = 0, joint = 0; i < size; ++i) {
    const Item<T> item = s.items[i];
    rank = item.key == last.key ? rank : i;
    joint = item.key == last.key && item.load == last.load ? joint : i;
    last = item;
    untied_a += rank;
    untied_joint += joint;
  }
  counts[0] = untied_a + untied_b - untied_joint - 2 * inversions(s, size);
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
FASTXAI_INLINE void count_range(const Work<T>& w, Scratch<T>& s, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) count(w.a + n * w.size, w.b + n * w.size, w.size, s, w.counts + 3 * n);
}

FASTXAI_CLONES void count_clone(const Work<float>& w, Scratch<float>& s, int64_t begin, int64_t end) {
  count_range(w, s, begin, end);
}
FASTXAI_CLONES void count_clone(const Work<double>& w, Scratch<double>& s, int64_t begin, int64_t end) {
  count_range(w, s, begin, end);
}

}  // namespace

template <class T>
void kendall(int64_t samples, int64_t size, const T* a, const T* b, int64_t* counts, int threads) {
  const Work<T> work{size, a, b, counts};
  parallel_for(samples, 1, threads, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(size);
    count_clone(work, scratch, begin, end);
  });
}

template void kendall(int64_t, int64_t, const float*, const float*, int64_t*, int);
template void kendall(int64_t, int64_t, const double*, const double*, int64_t*, int);

}  // namespace fastxai::cpu

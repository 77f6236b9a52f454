#pragma once
// The two look-ups of BPE encoding, as flat hash tables with open addressing: they are most of its time, and
// a std::unordered_map takes two cache misses for each.

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace cachalot {

/// Which pairs of neighbours merge. Filled once, then read from any thread.
class MergeTable {
 public:
  static constexpr uint32_t kNoMerge = std::numeric_limits<uint32_t>::max();

  struct Merge {
    uint32_t rank = kNoMerge;
    int32_t merged = -1;
  };

  explicit MergeTable(size_t merges = 0);

  /// Ranks are below this.
  size_t ranks() const { return ranks_; }

  /// At most as many pairs as the constructor was told; a pair that is there gets the new merge. Ranks are
  /// below that number, each of one pair.
  void Set(int32_t left, int32_t right, Merge merge);

  Merge Find(int32_t left, int32_t right) const {
    const Slot& slot = slots_[Place(Key(left, right))];
    return slot.merge;
  }

 private:
  struct Slot {
    uint64_t key = 0;
    Merge merge;  // without a rank: empty
  };

  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }

  /// Of the key, or of the empty slot where it would go.
  size_t Place(uint64_t key) const {
    size_t place = key * 0x9E3779B97F4A7C15u >> shift_;
    while (slots_[place].merge.rank != kNoMerge && slots_[place].key != key) place = (place + 1) & mask_;
    return place;
  }

  size_t ranks_;
  std::vector<Slot> slots_;
  size_t mask_;
  int shift_;
};

/// Pieces that are one token as a whole. Filled once, then read from any thread.
class WordTable {
 public:
  static constexpr size_t kMaxBytes = 64;  // few tokens are longer, all of them runs of one character

  explicit WordTable(size_t words = 0);

  /// At most as many words as the constructor was told, each once, of 1 to kMaxBytes bytes.
  void Add(std::string_view word, int32_t id);

  /// The token, or -1.
  int32_t Find(std::string_view word) const;

 private:
  struct Slot {
    uint32_t hash = 0;
    int32_t id = -1;                 // empty
    uint32_t begin = 0, length = 0;  // in bytes_
  };

  static uint64_t Hash(std::string_view word);

  std::vector<Slot> slots_;
  std::string bytes_;
  size_t mask_;
};

}  // namespace cachalot

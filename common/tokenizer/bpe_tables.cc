#include "common/tokenizer/bpe_tables.h"

#include <bit>
#include <cstring>

#include "common/base/check.h"

namespace cachalot {
namespace {

/// At most half full.
size_t SlotCount(size_t entries) { return std::bit_ceil(entries * 2 + 2); }

}  // namespace

MergeTable::MergeTable(size_t merges)
    : ranks_(merges), slots_(SlotCount(merges)), mask_(slots_.size() - 1), shift_(64 - std::countr_zero(slots_.size())) {}

void MergeTable::Set(int32_t left, int32_t right, Merge merge) {
  CHECK(merge.rank < ranks_);
  const uint64_t key = Key(left, right);
  slots_[Place(key)] = {key, merge};
}

WordTable::WordTable(size_t words) : slots_(SlotCount(words)), mask_(slots_.size() - 1) {}

uint64_t WordTable::Hash(std::string_view word) {
  uint64_t hash = word.size();
  for (size_t at = 0; at < word.size(); at += 8) {
    uint64_t part = 0;
    std::memcpy(&part, word.data() + at, std::min<size_t>(8, word.size() - at));
    hash = (hash ^ part) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  }
  return hash;
}

void WordTable::Add(std::string_view word, int32_t id) {
  CHECK(!word.empty() && word.size() <= kMaxBytes && id >= 0);
  const uint64_t hash = Hash(word);
  size_t place = hash & mask_;
  while (slots_[place].id >= 0) place = (place + 1) & mask_;
  slots_[place] = {static_cast<uint32_t>(hash >> 32), id, static_cast<uint32_t>(bytes_.size()),
                   static_cast<uint32_t>(word.size())};
  bytes_ += word;
}

int32_t WordTable::Find(std::string_view word) const {
  if (word.size() > kMaxBytes) return -1;
  const uint64_t hash = Hash(word);
  for (size_t place = hash & mask_; slots_[place].id >= 0; place = (place + 1) & mask_) {
    const Slot& slot = slots_[place];
    if (slot.hash == static_cast<uint32_t>(hash >> 32) && slot.length == word.size() &&
        std::memcmp(bytes_.data() + slot.begin, word.data(), word.size()) == 0) {
      return slot.id;
    }
  }
  return -1;
}

}  // namespace cachalot

#pragma once
// Which prefill worker is likely to have which beginning of a prompt in its prefix cache: what this router
// has seen prefilled where. A guess, good enough to place by: workers drop prefixes as they like.

#include <compare>
#include <cstdint>
#include <list>
#include <map>
#include <span>
#include <unordered_map>
#include <vector>

#include "common/kv/prefix_index.h"

namespace cachalot {

/// One life of a prefill worker: what it had in memory ends with it.
struct PrefixHolder {
  size_t worker = 0;  // WorkerPool's id
  uint64_t life = 0;  // PrefillWorker::life
  auto operator<=>(const PrefixHolder&) const = default;
};

class PrefixLocality {
 public:
  /// Keys of the ends of a context's whole blocks, in order.
  using Prefix = std::vector<PrefixKey>;
  static Prefix PrefixOf(std::span<const int32_t> context);

  /// Keeps so many blocks of all prompts together, the least recently prefilled go first. 65,536 are 8 M
  /// tokens in about 10 MB.
  PrefixLocality() : PrefixLocality(1 << 16) {}
  explicit PrefixLocality(size_t max_blocks) : max_blocks_(max_blocks) {}

  PrefixLocality(const PrefixLocality&) = delete;  // blocks_ points into used_
  PrefixLocality& operator=(const PrefixLocality&) = delete;

  /// `holder` has prefilled it. What an earlier life of that worker had is forgotten with each block.
  void Remember(const Prefix& prefix, PrefixHolder holder);
  /// Of each who has some: tokens at the beginning that it has without a gap. Lives that have ended are for
  /// the caller to leave out.
  std::map<PrefixHolder, int64_t> Find(const Prefix& prefix) const;
  size_t blocks() const { return blocks_.size(); }

 private:
  struct Block {
    PrefixKey key;
    std::vector<PrefixHolder> holders;  // the latest last
  };
  struct Low {
    size_t operator()(const PrefixKey& key) const { return key.low; }
  };

  const size_t max_blocks_;
  std::list<Block> used_;  // the latest first
  std::unordered_map<PrefixKey, std::list<Block>::iterator, Low> blocks_;
};

}  // namespace cachalot

#pragma once
// Which expert service has which experts.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/base/status.h"

namespace cachalot {

/// What a service says about itself (Description in cluster.proto).
struct ShardInfo {
  std::string address;
  uint64_t epoch = 0;
  int shard = 0, shards = 0;
  int expert_begin = 0, expert_end = 0;
};

class ShardMap {
 public:
  /// FAILED_PRECONDITION unless the services cover every expert of [0, experts) exactly once, agree on how
  /// many shards there are, that count divides `groups`, and the ranges lie on the borders of the reduction
  /// groups. It says what is missing, doubled or different, with addresses.
  static StatusOr<ShardMap> Make(std::vector<ShardInfo> services, int experts, int groups);

  /// As Make, from services of which several may have one shard (replicas, an old pod beside its successor) or
  /// another layout: the first complete set in the order given.
  static StatusOr<ShardMap> Choose(const std::vector<ShardInfo>& services, int experts, int groups);

  int shards() const { return static_cast<int>(infos_.size()); }
  int groups() const { return groups_; }
  const ShardInfo& operator[](int shard) const { return infos_[shard]; }

  /// Whether `info`, from the same address later, is still the same shard: FAILED_PRECONDITION says what
  /// differs. Its epoch may differ.
  Status CheckSame(const ShardInfo& info) const;
  void SetEpoch(int shard, uint64_t epoch) { infos_[shard].epoch = epoch; }

  /// Whether `info` can stand in for `shard`: the same shard, at whatever address. FAILED_PRECONDITION as above.
  Status CheckStandIn(int shard, const ShardInfo& info) const;
  void Replace(int shard, ShardInfo info) { infos_[shard] = std::move(info); }

  /// "shard 1/4 at 10.0.0.7:7300", for messages.
  std::string Name(int shard) const;

 private:
  std::vector<ShardInfo> infos_;  // by shard
  int groups_ = 0;
};

}  // namespace cachalot

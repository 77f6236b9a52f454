#pragma once
// The prefix cache of a prefill flow, as a role is configured.

#include <memory>
#include <string>

#include "common/kv/prefix_store.h"
#include "common/model/forward.h"

namespace cachalot {

struct PrefixCacheOptions {
  int64_t bytes = 0;          // 0: no cache
  int snapshot_percent = 50;  // of the bytes, at most, for snapshots
};

/// What roles take unless told otherwise: at Flash's shape about 20,000 tokens with 20 snapshots.
inline constexpr int64_t kDefaultPrefixCacheBytes = 256 << 20;

/// Weights, mode and numerics: what Compat says of rows, but for their layout.
std::string PrefixSalt(const Model& model);

/// Null when it is off. `layout` is that of the KV pools.
std::unique_ptr<PrefixStore> MakePrefixStore(const Model& model, const KvLayout& layout,
                                             PrefixCacheOptions options);

}  // namespace cachalot

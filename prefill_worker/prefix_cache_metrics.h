#pragma once
// What a prefix cache does, as metrics.

#include <string>

#include "common/kv/prefix_store.h"
#include "common/metrics/registry.h"

namespace cachalot {

/// Made once at start; Refresh by a collector of the registry.
class PrefixCacheMetrics {
 public:
  /// Names begin with `role`, as in cachalot_prefill.
  PrefixCacheMetrics(MetricsRegistry& registry, const std::string& role)
      : hits_(registry.AddCounter(role + "_prefix_cache_hits_total",
                                  "Contexts whose beginning came from the prefix cache")),
        misses_(registry.AddCounter(role + "_prefix_cache_misses_total",
                                    "Contexts of whose beginning the prefix cache had nothing")),
        hit_tokens_(registry.AddCounter(role + "_prefix_cache_hit_tokens_total",
                                        "Tokens that came from the prefix cache instead of being computed")),
        evicted_blocks_(registry.AddCounter(role + "_prefix_cache_evicted_blocks_total",
                                            "Blocks of 128 tokens that the prefix cache gave up for others")),
        evicted_snapshots_(registry.AddCounter(role + "_prefix_cache_evicted_snapshots_total",
                                               "Snapshots that the prefix cache gave up for others")),
        bytes_(registry.AddGauge(role + "_prefix_cache_bytes", "Bytes of the prefix cache in use")),
        snapshot_bytes_(registry.AddGauge(role + "_prefix_cache_snapshot_bytes",
                                          "Bytes of the prefix cache in use by snapshots")) {}

  /// One thread at a time.
  void Refresh(const PrefixStats& stats) {
    const auto advance = [](Counter& counter, int64_t to) {
      counter.Add(static_cast<double>(to) - counter.Value());
    };
    advance(hits_, stats.hits);
    advance(misses_, stats.misses);
    advance(hit_tokens_, stats.hit_tokens);
    advance(evicted_blocks_, stats.evicted_blocks);
    advance(evicted_snapshots_, stats.evicted_snapshots);
    bytes_.Set(static_cast<double>(stats.bytes));
    snapshot_bytes_.Set(static_cast<double>(stats.snapshot_bytes));
  }

 private:
  Counter &hits_, &misses_, &hit_tokens_, &evicted_blocks_, &evicted_snapshots_;
  Gauge &bytes_, &snapshot_bytes_;
};

}  // namespace cachalot

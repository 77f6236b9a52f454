#pragma once
// What the decode worker counts, by the names that docs and dashboards use.

#include "common/metrics/registry.h"

namespace cachalot {

struct DecodeMetrics {
  explicit DecodeMetrics(MetricsRegistry& registry);

  Counter& requests;      // leases asked for
  Counter& refused;       // of these not granted
  Counter& expired;       // leases freed because their Session was gone
  Counter& tokens;        // handed to Sessions
  Counter& stale_frames;  // KV frames of a replaced attempt
  Counter& kv_bytes;      // KV frames received, headers included
  Counter& failed;        // running sequences that ended in an error
  Counter& preempted;     // running sequences whose KV others needed
  Counter& expert_failures;
  Gauge& kv_blocks_used;
  Gauge& leases;
  Gauge& sessions;
  Histogram& batch;
  Histogram& step_seconds;
  Histogram& expert_call_seconds;  // one MoE layer, from dispatch to the last partial
};

}  // namespace cachalot

#pragma once
// The metrics of the prefill worker, made once at start.

#include "common/metrics/registry.h"

namespace cachalot {

struct PrefillMetrics {
  explicit PrefillMetrics(MetricsRegistry& registry);

  Counter& requests;
  Counter& failed_requests;
  Counter& prompt_tokens;
  Counter& pushed_bytes;
  Counter& expert_failures;
  Gauge& kv_blocks_used;
  Gauge& queue_length;
  Gauge& unread_row_bytes;
  Histogram& chunk_tokens;
  Histogram& chunk_seconds;
  Histogram& expert_call_seconds;  // one MoE layer, from dispatch to the last partial
  Histogram& first_token_seconds;
};

}  // namespace cachalot

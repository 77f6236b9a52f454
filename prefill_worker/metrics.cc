#include "prefill_worker/metrics.h"

namespace cachalot {

PrefillMetrics::PrefillMetrics(MetricsRegistry& registry)
    : requests(
          registry.AddCounter("cachalot_prefill_requests_total", "Prefill calls, refused ones included")),
      failed_requests(registry.AddCounter("cachalot_prefill_failed_requests_total",
                                          "Prefill calls that did not end with OK, cancelled ones included")),
      prompt_tokens(registry.AddCounter("cachalot_prefill_prompt_tokens_total", "Prompt tokens computed")),
      pushed_bytes(registry.AddCounter("cachalot_prefill_pushed_bytes_total",
                                       "Bytes of KV frames sent to decode workers")),
      expert_failures(registry.AddCounter("cachalot_prefill_expert_failures_total",
                                          "Calls of experts that failed, those made again included")),
      kv_blocks_used(registry.AddGauge("cachalot_prefill_kv_blocks_used", "KV blocks reserved")),
      queue_length(registry.AddGauge("cachalot_prefill_queue_length", "Jobs that wait or are computed")),
      unread_row_bytes(
          registry.AddGauge("cachalot_prefill_unread_row_bytes",
                            "Logits and prompt log probabilities that callers have not read, in bytes")),
      chunk_tokens(registry.AddHistogram("cachalot_prefill_chunk_tokens", "Tokens of a chunk",
                                         ExponentialBuckets(1, 2, 14))),
      chunk_seconds(registry.AddHistogram("cachalot_prefill_chunk_seconds", "Time of a chunk's forward pass",
                                          ExponentialBuckets(0.0005, 2, 16))),
      expert_call_seconds(registry.AddHistogram("cachalot_prefill_expert_call_seconds",
                                                "One MoE layer's experts, from dispatch to the last partial",
                                                ExponentialBuckets(0.00001, 2, 20))),
      first_token_seconds(registry.AddHistogram("cachalot_prefill_first_token_seconds",
                                                "From a call's arrival to its first token",
                                                ExponentialBuckets(0.001, 2, 16))) {}

}  // namespace cachalot

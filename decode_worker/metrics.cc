#include "decode_worker/metrics.h"

namespace cachalot {

DecodeMetrics::DecodeMetrics(MetricsRegistry& registry)
    : requests(registry.AddCounter("cachalot_decode_requests_total", "Leases that routers asked for.")),
      refused(registry.AddCounter("cachalot_decode_refused_total", "Requests that got no lease.")),
      expired(registry.AddCounter("cachalot_decode_expired_leases_total",
                                  "Leases freed because their Session was gone for the grace.")),
      tokens(registry.AddCounter("cachalot_decode_tokens_total", "Tokens handed to Sessions.")),
      stale_frames(registry.AddCounter("cachalot_decode_stale_frames_total",
                                       "KV frames dropped because a newer attempt has replaced theirs.")),
      kv_bytes(
          registry.AddCounter("cachalot_decode_kv_received_bytes_total", "Bytes of KV frames received.")),
      failed(registry.AddCounter("cachalot_decode_failed_sequences_total",
                                 "Running sequences that ended in an error.")),
      preempted(registry.AddCounter("cachalot_decode_preemptions_total",
                                    "Running sequences that gave up their KV to others.")),
      expert_failures(registry.AddCounter("cachalot_decode_expert_failures_total",
                                          "Calls of experts that failed, those made again included.")),
      kv_blocks_used(registry.AddGauge("cachalot_decode_kv_blocks_used", "KV blocks that leases hold.")),
      leases(registry.AddGauge("cachalot_decode_leases", "Leases that live.")),
      sessions(registry.AddGauge("cachalot_decode_sessions", "Open Sessions, one a router.")),
      batch(registry.AddHistogram("cachalot_decode_batch_size", "Sequences per step.",
                                  ExponentialBuckets(1, 2, 12))),
      step_seconds(registry.AddHistogram("cachalot_decode_step_seconds", "Duration of a step.",
                                         ExponentialBuckets(0.0001, 2, 18))),
      expert_call_seconds(registry.AddHistogram("cachalot_decode_expert_call_seconds",
                                                "One MoE layer's experts, from dispatch to the last partial.",
                                                ExponentialBuckets(0.00001, 2, 20))) {}

}  // namespace cachalot

#include "prefill_worker/config.h"

namespace cachalot {

void AddFlags(ConfigSchema& schema, PrefillConfig* config) {
  PrefillServerOptions& server = config->server;
  AddFlags(schema, &config->worker);
  schema.Add("max-chunk-tokens", &server.max_chunk_tokens, "tokens of a step", Range<int64_t>(1, 1 << 20));
  schema.Add("prefix-cache-bytes", &server.prefix_cache.bytes,
             "memory for the KV of prompts that later ones may begin with; 0: none",
             Range<int64_t>(0, int64_t{1} << 50));
  schema.Add("prefix-cache-snapshot-percent", &server.prefix_cache.snapshot_percent,
             "of it, at most, for window rows and state where prompts can go on", Range(1, 100));
  schema.Add("unread-row-bytes", &server.service.unread_row_bytes,
             "logits and prompt log probabilities of a job that its caller has not read; then the job waits",
             Range<int64_t>(1, int64_t{1} << 40));
  schema.Add("max-queue", &server.service.max_queue, "jobs that wait or are computed", Range(1, 1 << 20));
}

PrefillServerOptions PrefillConfig::ServerOptions() const {
  PrefillServerOptions options = server;
  options.listen = worker.listen;
  options.kv_tokens = worker.kv_tokens;
  options.max_sequences = worker.max_sequences;
  options.service.debug_logits = worker.debug_logits;
  return options;
}

}  // namespace cachalot

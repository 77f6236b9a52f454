#include "decode_worker/config.h"

namespace cachalot {

void AddFlags(ConfigSchema& schema, DecodeConfig* config) {
  DecodeServerOptions& server = config->server;
  AddFlags(schema, &config->worker);
  schema.Add("spin-us", &server.spin_us,
             "how long the step thread polls for experts before it sleeps; only with a core to itself",
             Range(0, 1000000));
  schema.Add("reserve-ahead-tokens", &server.sessions.reserve_ahead,
             "KV a sequence gets at first behind its prompt; it takes more as it goes on, from others if need be",
             Range<int64_t>(1, int64_t{1} << 40));
  schema.Add("max-batch", &server.decode.max_batch, "sequences of a step", Range(1, 1 << 16));
  // Routers acknowledge every 16 tokens or so: a window below that would stall them.
  schema.Add("window", &server.decode.window, "tokens of a sequence that may be on their way to its reader",
             Range<int64_t>(32, 1 << 20));
  schema.AddMilliseconds("session-grace-ms", &server.leases.session_grace,
                         "how long leases outlive the Session of their router", AtLeastMilliseconds(1));
  // Routers send a heartbeat every 500 ms: below two of them every quiet Session would break.
  schema.AddMilliseconds("heartbeat-timeout-ms", &server.leases.heartbeat_timeout,
                         "how long a router may be silent before its Session counts as broken",
                         AtLeastMilliseconds(1000));
  schema.AddMilliseconds("expert-outage-grace-ms", &server.decode.expert_outage_grace,
                         "how long sequences wait for experts that do not answer");
}

DecodeServerOptions DecodeConfig::ServerOptions() const {
  DecodeServerOptions options = server;
  options.listen = worker.listen;
  options.threads = worker.threads;
  options.kv_tokens = worker.kv_tokens;
  options.max_sequences = worker.max_sequences;
  options.sessions.debug_logits = worker.debug_logits;
  // A long step of these is arithmetic: done again it takes as long.
  if (worker.local_experts()) options.decode.step_limit = Duration::max();
  return options;
}

}  // namespace cachalot

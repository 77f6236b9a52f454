#include "expert_service/config.h"

#include "expert_service/expert_store.h"

namespace cachalot {

void AddFlags(ConfigSchema& schema, ExpertConfig* config) {
  ExpertServiceConfig& service = config->service;
  schema.Add("listen", &service.listen, "host:port (port 0: a free one) or unix:path to listen on", ListenForm());
  schema.Add("metrics-listen", &config->metrics_listen, "host:port of the Prometheus endpoint; empty: none",
             OrEmpty(HostPortForm()));
  schema.Add("model", &service.model, "the checkpoint's directory", NotEmpty());
  schema.Add("shard", &service.shard, "i/N: the i-th of N equal shards; N is 1, 2, 4 or 8",
             [](const std::string& text) { return ShardSpec::Parse(text).status(); });
  schema.Add("kernels", &service.kernels, "back end of the arithmetic", OneOf({"auto", "cpu", "ref"}));
  schema.Add("mode", &service.mode, "numeric mode", OneOf({"exact", "bf16"}));
  schema.Add("threads", &service.threads, "threads that compute; 0: one a core", Range(0, 1024));
  schema.Add("batch-wait-us", &service.batch_wait_us,
             "how long a call may wait for calls of other connected callers", Range(0, 1000000));
  schema.Add("spin-us", &service.spin_us,
             "how long the step thread polls before it sleeps; only with a core to itself", Range(0, 1000000));
  schema.Add("max-call-rows", &service.max_call_rows, "token rows that one call may bring", Range(1, 1 << 20));
  AddFlags(schema, &config->role);
  schema.Require("model");
}

}  // namespace cachalot

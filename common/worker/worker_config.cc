#include "common/worker/worker_config.h"

#include <algorithm>

#include "common/discovery/ares_resolver.h"
#include "common/discovery/seed.h"

namespace cachalot {

void AddFlags(ConfigSchema& schema, WorkerConfig* config) {
  schema.Add("listen", &config->listen, "host:port to listen on; port 0 takes a free one", ListenForm());
  schema.Add("metrics-listen", &config->metrics_listen, "host:port of /metrics; empty for none", OrEmpty(HostPortForm()));
  schema.Add("model", &config->model, "directory of the checkpoint", NotEmpty());
  schema.Add("experts", &config->experts,
             "expert services: host:port, or dns:NAME:PORT for the addresses of a name; or local: in this process",
             [](const std::vector<std::string>& texts) {
               for (const std::string& text : texts)
                 if (text != "local") RETURN_IF_ERROR(ParseSeed(text).status());
               return OkStatus();
             });
  schema.Add("dns-server", &config->dns_server, "ip:port of the DNS server; empty: as the system has it",
             [](const std::string& servers) { return AresResolver::Make({.servers = servers}).status(); });
  schema.Add("kernels", &config->kernels, "auto, cpu or ref", OneOf({"auto", "cpu", "ref"}));
  schema.Add("mode", &config->mode, "numeric mode", OneOf({"exact", "bf16"}));
  schema.Add("threads", &config->threads, "threads that compute", Range(1, 1024));
  schema.Add("kv-tokens", &config->kv_tokens, "tokens of KV in all", Range<int64_t>(1, int64_t{1} << 40));
  schema.Add("max-sequences", &config->max_sequences, "sequences that hold KV at once", Range(1, 1 << 20));
  schema.Add("debug-logits", &config->debug_logits, "accept forced tokens and requests for logits");
  schema.AddMilliseconds("drain-limit-ms", &config->drain_limit, "how long running work may go on after SIGTERM");
  AddFlags(schema, &config->role);
  schema.Require("model");
  schema.Require("experts");
  schema.Check([config] {
    const bool local = std::find(config->experts.begin(), config->experts.end(), "local") != config->experts.end();
    return local && config->experts.size() > 1
               ? InvalidArgument("--experts: local stands alone, or give the addresses of expert services")
               : OkStatus();
  });
}

}  // namespace cachalot

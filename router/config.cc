#include "router/config.h"

#include "common/discovery/ares_resolver.h"
#include "common/discovery/seed.h"

namespace cachalot {

void AddFlags(ConfigSchema& schema, FlowOptions* flow) {
  schema.Add("max-requests", &flow->max_requests, "requests at once; one more is refused with RESOURCE_EXHAUSTED",
             Range<int64_t>(1, int64_t{1} << 32));
  schema.AddMilliseconds("placement-wait-ms", &flow->placement_wait, "how long a request waits for a usable worker",
                         AtLeastMilliseconds(1));
  schema.AddMilliseconds("resume-patience-ms", &flow->resume_patience,
                         "how long a preempted request believes that no worker has KV for it before it asks one",
                         AtLeastMilliseconds(1));
}

void AddFlags(ConfigSchema& schema, RouterConfig* config) {
  schema.Add("listen", &config->listen, "host:port of the API; port 0 takes a free one", ListenForm());
  schema.Add("metrics-listen", &config->metrics_listen, "host:port of the Prometheus endpoint; empty: none",
             OrEmpty(HostPortForm()));
  const Validator<std::vector<std::string>> seeds = [](const auto& texts) -> Status {
    ASSIGN_OR_RETURN(const std::vector<Seed> seeds, ParseSeeds(texts));
    // Two members at one address would be one process whose load counts half, and its own other pair.
    for (size_t i = 0; i < seeds.size(); ++i)
      for (size_t j = 0; j < i; ++j)
        if (seeds[i].text == seeds[j].text) return InvalidArgument("\"" + seeds[i].text + "\" is given twice");
    return OkStatus();
  };
  schema.Add("prefill", &config->prefill,
             "prefill workers: host:port, or dns:NAME:PORT for every address of a name; several with commas", seeds);
  schema.Add("decode", &config->decode, "decode workers, in the same way", seeds);
  schema.Require("prefill");
  schema.Require("decode");
  schema.Add("dns-server", &config->dns_server, "ip:port of the DNS server; empty: as the system has it",
             [](const std::string& servers) { return AresResolver::Make({.servers = servers}).status(); });
  schema.AddMilliseconds("dns-interval-ms", &config->dns_interval, "between two questions for a name",
                         AtLeastMilliseconds(10));
  schema.Add("model", &config->model, "checkpoint directory for config and tokenizer, the same as the workers'; empty: ask a worker");
  schema.Add("debug-logits", &config->debug_logits, "serve the Debug service");
  schema.AddMilliseconds("drain-ms", &config->drain, "how long running requests may go on after SIGTERM");
  AddFlags(schema, &config->flow);
  AddFlags(schema, &config->role);
}

}  // namespace cachalot

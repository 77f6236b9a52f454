// cachalot-decode: holds the KV of running sequences and streams their tokens to routers.

#include <algorithm>
#include <cstdio>

#include "common/base/log.h"
#include "common/config/schema.h"
#include "common/metrics/server.h"
#include "common/moe/connect_experts.h"
#include "common/process/role_main.h"
#include "decode_worker/decode_server.h"

namespace cachalot {
namespace {

struct Config {
  std::string listen = "127.0.0.1:0", metrics_listen, model, kernels = "auto", mode = "exact",
              log_level = "info";
  std::vector<std::string> experts;
  std::string dns_server;
  int threads = 1, spin_us = 0, max_sequences = 256, max_batch = 64;
  int64_t kv_tokens = 262144, window = 256, reserve_ahead = SessionOptions().reserve_ahead;
  bool debug_logits = false, die_with_parent = false;
  LeaseOptions leases;
  Duration expert_outage_grace = DecodeOptions().expert_outage_grace;
  Duration drain_limit = std::chrono::seconds(10);
};

bool HasLocalExperts(const Config& config) { return config.experts == std::vector<std::string>{"local"}; }

void Describe(ConfigSchema& schema, Config* config) {
  schema.Add("listen", &config->listen, "host:port to listen on; port 0 takes a free one", NotEmpty());
  schema.Add("metrics-listen", &config->metrics_listen, "host:port of /metrics; empty for none");
  schema.Add("model", &config->model, "directory of the checkpoint", NotEmpty());
  schema.Add("experts", &config->experts,
             "expert services: host:port, or dns:NAME:PORT for the addresses of a name; or local: in this process",
             [](const std::vector<std::string>& texts) { return ParseSeeds(texts).status(); });
  schema.Add("dns-server", &config->dns_server, "ip:port of the DNS server; empty: as the system has it");
  schema.Add("kernels", &config->kernels, "auto, cpu or ref", OneOf({"auto", "cpu", "ref"}));
  schema.Add("threads", &config->threads, "threads that compute", Range(1, 1024));
  schema.Add("spin-us", &config->spin_us,
             "how long the step thread polls for experts before it sleeps; only with a core to itself",
             Range(0, 1000000));
  schema.Add("kv-tokens", &config->kv_tokens, "tokens of KV in all", Range<int64_t>(1, int64_t{1} << 40));
  schema.Add(
      "reserve-ahead-tokens", &config->reserve_ahead,
      "KV a sequence gets at first behind its prompt; it takes more as it goes on, from others if need be",
      Range<int64_t>(1, int64_t{1} << 40));
  schema.Add("max-sequences", &config->max_sequences, "sequences that hold KV at once", Range(1, 1 << 20));
  schema.Add("max-batch", &config->max_batch, "sequences of a step", Range(1, 1 << 16));
  // Routers acknowledge every 16 tokens or so: a window below that would stall them.
  schema.Add("window", &config->window, "tokens of a sequence that may be on their way to its reader",
             Range<int64_t>(32, 1 << 20));
  schema.Add("mode", &config->mode, "numeric mode", OneOf({"exact", "bf16"}));
  schema.Add("debug-logits", &config->debug_logits, "accept forced tokens and requests for logits");
  schema.AddMilliseconds("session-grace-ms", &config->leases.session_grace,
                         "how long leases outlive the Session of their router");
  schema.AddMilliseconds("heartbeat-timeout-ms", &config->leases.heartbeat_timeout,
                         "how long a router may be silent before its Session counts as broken");
  schema.AddMilliseconds("expert-outage-grace-ms", &config->expert_outage_grace,
                         "how long sequences wait for experts that do not answer");
  schema.AddMilliseconds("drain-limit-ms", &config->drain_limit,
                         "how long sequences may run on after SIGTERM");
  schema.Add("log-level", &config->log_level, "debug, info, warning or error",
             OneOf({"debug", "info", "warning", "error"}));
  schema.Add("die-with-parent", &config->die_with_parent, "end when the parent process does");
  schema.Require("model");
  schema.Require("experts");
  schema.Check([config] {
    const bool local = std::find(config->experts.begin(), config->experts.end(), "local") != config->experts.end();
    return local && config->experts.size() > 1
               ? InvalidArgument("--experts: local stands alone, or give the addresses of expert services")
               : OkStatus();
  });
}

DecodeServerOptions ServerOptionsOf(const Config& config) {
  DecodeServerOptions options;
  options.listen = config.listen;
  options.threads = config.threads;
  options.spin_us = config.spin_us;
  options.kv_tokens = config.kv_tokens;
  options.max_sequences = config.max_sequences;
  options.decode = {config.max_batch, config.window, config.expert_outage_grace};
  options.leases = config.leases;
  options.sessions.debug_logits = config.debug_logits;
  options.sessions.reserve_ahead = config.reserve_ahead;
  return options;
}

StepLoop::MakeExperts RemoteBackend(const Config& config, const DecodeServer& server,
                                    const ModelWeights& weights, const RoleProcess& process) {
  return [&](rpc::Loop* loop) -> StatusOr<std::unique_ptr<ExpertBackend>> {
    ConnectExpertsOptions options;
    options.give_up = [&process] { return process.stopping(); };
    options.dns_servers = config.dns_server;
    ASSIGN_OR_RETURN(
        std::unique_ptr<ExpertBackend> experts,
        ConnectExperts(config.experts, loop, server.compat(), weights.config.n_routed_experts, options));
    return experts;
  };
}

Status Serve(RoleProcess& process, const Config& config) {
  ASSIGN_OR_RETURN(const kernels::KernelTable* kernels, kernels::SelectKernels(config.kernels, config.mode));
  const bool local = HasLocalExperts(config);
  ASSIGN_OR_RETURN(
      const auto weights,
      ModelWeights::Load(config.model, local ? WeightSelection::All() : WeightSelection::DenseOnly()));
  DecodeServerOptions options = ServerOptionsOf(config);
  ASSIGN_OR_RETURN(options.assets, ReadModelAssets(config.model));
  MetricsRegistry registry;
  ASSIGN_OR_RETURN(const auto metrics_server, MetricsServer::Start(config.metrics_listen, registry));
  const SteadyClock clock;
  DecodeServer server(weights, *kernels, clock, registry, options);
  RETURN_IF_ERROR(
      server.Start(local ? server.LocalBackend() : RemoteBackend(config, server, *weights, process)));
  process.Ready(config.listen.substr(0, config.listen.rfind(':') + 1) + std::to_string(server.port()));
  process.WaitForStop();
  server.Drain(config.drain_limit);
  server.Stop();
  return OkStatus();
}

Status Main(RoleProcess& process, int argc, char** argv) {
  Config config;
  ConfigSchema schema("cachalot-decode",
                      "Holds the KV of running sequences and streams their tokens to routers.");
  Describe(schema, &config);
  ASSIGN_OR_RETURN(const ParsedArgs parsed, schema.Parse(argc, argv));
  if (parsed.help) {
    std::fputs(schema.Help().c_str(), stdout);
    return OkStatus();
  }
  if (!parsed.positional.empty())
    return InvalidArgument("unexpected argument \"" + parsed.positional[0] + "\"");
  RETURN_IF_ERROR(process.Init(config.log_level));
  if (config.die_with_parent) RETURN_IF_ERROR(process.DieWithParent());
  return Serve(process, config);
}

}  // namespace
}  // namespace cachalot

int main(int argc, char** argv) {
  cachalot::RoleProcess process({.role = "decode", .poll_strategy = cachalot::PollStrategy::kPoll});
  return process.Exit(cachalot::Main(process, argc, argv));
}

// cachalot-prefill: builds the KV of prompts and pushes it to decode workers.

#include <algorithm>
#include <cstdio>

#include "common/base/log.h"
#include "common/config/schema.h"
#include "common/metrics/server.h"
#include "common/moe/connect_experts.h"
#include "common/process/role_main.h"
#include "prefill_worker/prefill_server.h"

namespace cachalot {
namespace {

struct Config {
  std::string listen = "127.0.0.1:0", metrics_listen, model, kernels = "auto", mode = "exact",
              log_level = "info";
  std::vector<std::string> experts;
  std::string dns_server;
  int threads = 1, max_sequences = 64, max_queue = 256;
  int64_t max_chunk_tokens = 256, kv_tokens = 262144;
  PrefixCacheOptions prefix_cache{.bytes = kDefaultPrefixCacheBytes};
  bool debug_logits = false, die_with_parent = false;
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
  schema.Add("max-chunk-tokens", &config->max_chunk_tokens, "tokens of a step", Range<int64_t>(1, 1 << 20));
  schema.Add("kv-tokens", &config->kv_tokens, "tokens of KV in all", Range<int64_t>(1, int64_t{1} << 40));
  schema.Add("max-sequences", &config->max_sequences, "sequences that hold KV at once", Range(1, 1 << 20));
  schema.Add("prefix-cache-bytes", &config->prefix_cache.bytes,
             "memory for the KV of prompts that later ones may begin with; 0: none",
             Range<int64_t>(0, int64_t{1} << 50));
  schema.Add("prefix-cache-snapshot-percent", &config->prefix_cache.snapshot_percent,
             "of it, at most, for window rows and state where prompts can go on", Range(1, 100));
  schema.Add("max-queue", &config->max_queue, "jobs that wait or are computed", Range(1, 1 << 20));
  schema.Add("mode", &config->mode, "numeric mode", OneOf({"exact", "bf16"}));
  schema.Add("debug-logits", &config->debug_logits, "accept forced tokens and requests for logits");
  schema.AddMilliseconds("drain-limit-ms", &config->drain_limit,
                         "how long running calls may go on after SIGTERM");
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

PrefillServerOptions ServerOptionsOf(const Config& config) {
  PrefillServerOptions options;
  options.listen = config.listen;
  options.max_chunk_tokens = config.max_chunk_tokens;
  options.kv_tokens = config.kv_tokens;
  options.max_sequences = config.max_sequences;
  options.prefix_cache = config.prefix_cache;
  options.service.max_queue = config.max_queue;
  options.service.debug_logits = config.debug_logits;
  return options;
}

PrefillStepLoop::MakeExperts RemoteBackend(const Config& config, const PrefillServer& server,
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
  PrefillServerOptions options = ServerOptionsOf(config);
  ASSIGN_OR_RETURN(options.assets, ReadModelAssets(config.model));
  MetricsRegistry registry;
  ASSIGN_OR_RETURN(const auto metrics_server, MetricsServer::Start(config.metrics_listen, registry));
  ThreadPool threads(config.threads);
  PrefillServer server(std::move(options), {weights, kernels, &threads}, &registry);
  RETURN_IF_ERROR(
      server.Start(local ? server.LocalBackend() : RemoteBackend(config, server, *weights, process)));
  process.Ready(config.listen.substr(0, config.listen.rfind(':') + 1) + std::to_string(server.port()));
  process.WaitForStop();
  if (!server.Drain(config.drain_limit))
    LogWarning("calls still run after the drain limit of " + std::to_string(Seconds(config.drain_limit)) +
               " s: they are cancelled");
  server.Shutdown();
  return OkStatus();
}

Status Main(RoleProcess& process, int argc, char** argv) {
  Config config;
  ConfigSchema schema("cachalot-prefill", "Builds the KV of prompts and pushes it to decode workers.");
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
  cachalot::RoleProcess process({.role = "prefill", .poll_strategy = cachalot::PollStrategy::kPoll});
  return process.Exit(cachalot::Main(process, argc, argv));
}

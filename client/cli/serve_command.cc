#include "client/cli/commands.h"
#include "client/embedded/embedded_workers.h"
#include "common/base/address.h"
#include "common/cluster/assets.h"
#include "common/metrics/server.h"
#include "common/rpc/block_on.h"
#include "common/rpc/health.h"
#include "router/config.h"
#include "router/generation_service.h"

namespace cachalot::cli {
namespace {

constexpr int kPublicMessageBytes = 16 << 20;

struct Config {
  EmbeddedOptions embedded;
  std::string listen = "127.0.0.1:8000", metrics_listen;
  int max_chunk_tokens = 256;
  bool debug_logits = false;
  FlowOptions flow;
  RoleFlags role;
};

Status Serve(RoleProcess& process, const Config& config) {
  ASSIGN_OR_RETURN(const auto embedded, EmbeddedModel::Load(config.embedded));
  ASSIGN_OR_RETURN(const auto assets, ReadModelAssets(config.embedded.model));
  ASSIGN_OR_RETURN(std::shared_ptr<const Frontend> frontend, Frontend::Make(assets, config.embedded.mode));

  MetricsRegistry metrics;
  rpc::HealthState health;
  WorkerPool<DecodeWorker> decode;
  WorkerPool<PrefillWorker> prefill;
  rpc::Server server({.listen = config.listen, .max_message_bytes = kPublicMessageBytes});
  rpc::Loop* loop = server.AddLoop({.name = "front"});
  const rpc::HealthService health_service(&server, loop, &health);
  FlowContext flow{loop, &decode, &prefill, config.flow, {}};
  GenerationService service(&server, loop, &flow, &metrics, config.debug_logits);
  EmbeddedEngine engine(embedded.get(), loop, config.max_chunk_tokens);
  decode.Add(engine.MakeDecodeWorker());
  prefill.Add(engine.MakePrefillWorker());

  engine.ExportMetrics(metrics);

  // First: a server that has started must not meet a failure behind it, its calls use what stands above.
  ASSIGN_OR_RETURN(const auto metrics_server, MetricsServer::Start(config.metrics_listen, metrics));
  ASSIGN_OR_RETURN(const int port, server.Start());
  loop->Start();
  service.Serve(frontend);
  for (const char* name : {"", "liveness", "readiness"}) health.Set(name, true);
  process.Ready(BoundAddress(config.listen, port));
  process.WaitForStop();
  health.Set("readiness", false);
  service.Drain();
  health.Close();
  server.Shutdown(std::chrono::seconds(10));
  return OkStatus();
}

}  // namespace

int ServeCommand(const std::vector<std::string>& words) {
  RoleProcess process({.role = "serve"});
  Config config;
  config.embedded.prefix_cache.bytes = kDefaultPrefixCacheBytes;
  ConfigSchema schema("cachalot serve", "Serves a checkpoint from this process alone: all roles embedded, gRPC in front.");
  schema.Add("model", &config.embedded.model, "checkpoint directory", NotEmpty());
  schema.Require("model");
  schema.Add("listen", &config.listen, "host:port of the API; port 0 takes a free one", ListenForm());
  schema.Add("metrics-listen", &config.metrics_listen, "host:port of the Prometheus endpoint; empty: none",
             OrEmpty(HostPortForm()));
  schema.Add("mode", &config.embedded.mode, "numeric mode", OneOf({"exact", "bf16"}));
  schema.Add("kernels", &config.embedded.kernels, "back end", OneOf({"auto", "cpu", "ref"}));
  schema.Add("threads", &config.embedded.threads, "compute threads", Range(1, 256));
  schema.Add("kv-tokens", &config.embedded.kv_tokens, "tokens of KV in all", Range<int64_t>(128, int64_t{1} << 40));
  schema.Add("max-sequences", &config.embedded.max_sequences, "sequences at once", Range(1, 65536));
  schema.Add("max-chunk-tokens", &config.max_chunk_tokens, "prompt tokens per prefill step", Range(1, 65536));
  schema.Add("prefix-cache-bytes", &config.embedded.prefix_cache.bytes,
             "memory for the KV of prompts that later ones may begin with; 0: none",
             Range<int64_t>(0, int64_t{1} << 50));
  schema.Add("prefix-cache-snapshot-percent", &config.embedded.prefix_cache.snapshot_percent,
             "of it, at most, for window rows and state where prompts can go on", Range(1, 100));
  schema.Add("debug-logits", &config.debug_logits, "serve the Debug service");
  AddFlags(schema, &config.flow);
  AddFlags(schema, &config.role);
  return RunRole(process, schema, config.role, words, [&] { return Serve(process, config); });
}

}  // namespace cachalot::cli

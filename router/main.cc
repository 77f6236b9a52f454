// cachalot-router: the public gRPC API in front of prefill and decode workers.

#include <cstdio>
#include <thread>

#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/cluster/assets.h"
#include "common/config/schema.h"
#include "common/metrics/server.h"
#include "common/process/role_main.h"
#include "common/rpc/block_on.h"
#include "common/rpc/health.h"
#include "router/decode_client.h"
#include "router/generation_service.h"
#include "router/prefill_client.h"

namespace cachalot {
namespace {

constexpr int kPublicMessageBytes = 16 << 20;
constexpr Duration kLook = std::chrono::milliseconds(20);
constexpr Duration kSayWhatIsMissing = std::chrono::seconds(2);

struct Config {
  std::string listen = "127.0.0.1:8000", metrics_listen, model, log_level = "info";
  std::vector<std::string> prefill, decode;
  bool debug_logits = false, die_with_parent = false;
  Duration drain = std::chrono::seconds(10);
};

StatusOr<ParsedArgs> ParseConfig(int argc, char** argv, Config& config, std::string* help) {
  ConfigSchema schema("cachalot-router", "Serves the public gRPC API over prefill and decode workers.");
  schema.Add("listen", &config.listen, "host:port of the API; port 0 takes a free one", NotEmpty());
  schema.Add("metrics-listen", &config.metrics_listen, "host:port of the Prometheus endpoint; empty: none");
  schema.Add("prefill", &config.prefill, "prefill workers, host:port,host:port");
  schema.Add("decode", &config.decode, "decode workers, host:port,host:port");
  schema.Require("prefill");
  schema.Require("decode");
  schema.Add("model", &config.model, "checkpoint directory for config and tokenizer; empty: ask a worker");
  schema.Add("debug-logits", &config.debug_logits, "serve the Debug service");
  schema.Add("log-level", &config.log_level, "debug, info, warning or error");
  schema.Add("die-with-parent", &config.die_with_parent, "end when the parent process ends");
  schema.AddMilliseconds("drain-ms", &config.drain, "how long running requests may go on after SIGTERM");
  auto parsed = schema.Parse(argc, argv);
  *help = schema.Help();
  return parsed;
}

/// Everything that lives on the router's loop.
class Router {
 public:
  explicit Router(const Config& config)
      : config_(config),
        server_({.listen = config.listen, .max_message_bytes = kPublicMessageBytes}),
        loop_(server_.AddLoop({.name = "router"})),
        health_service_(&server_, loop_, &health_),
        flow_{loop_, &decode_, &prefill_, {}, {}},
        service_(&server_, loop_, &flow_, &metrics_, config.debug_logits) {
    const uint64_t epoch = RandomId();
    for (const std::string& address : config.decode) {
      auto client = std::make_unique<DecodeClient>(loop_, address, epoch, &cluster_);
      runs_.push_back(client->Run());
      decode_.Add(std::move(client));
    }
    for (const std::string& address : config.prefill) {
      auto client = std::make_unique<PrefillClient>(loop_, address, &cluster_);
      runs_.push_back(client->Run());
      prefill_.Add(std::move(client));
    }
  }

  Status Start(std::string* address) {
    // First, so that nothing is served yet when it fails.
    ASSIGN_OR_RETURN(metrics_server_, MetricsServer::Start(config_.metrics_listen, metrics_));
    ASSIGN_OR_RETURN(const int port, server_.Start());
    *address = config_.listen.substr(0, config_.listen.rfind(':') + 1) + std::to_string(port);
    loop_->Start();
    health_.Set("", true);
    health_.Set("liveness", true);
    for (auto& run : runs_) loop_->Spawn(std::move(run), "worker client");
    return OkStatus();
  }

  /// Waits for one usable worker of each kind and for the model's files; says what is missing meanwhile.
  Status AwaitWorkers(const RoleProcess& process) {
    StatusOr<v1::GetModelAssetsResponse> assets = NotFound("no worker asked yet");
    if (!config_.model.empty()) {
      ASSIGN_OR_RETURN(assets, ReadModelAssets(config_.model));
    }
    for (TimePoint said = std::chrono::steady_clock::now(); !process.stopping();) {
      auto missing = rpc::BlockOn(loop_, Missing(this, kSayWhatIsMissing), std::chrono::seconds(10),
                                  "waiting for workers");
      RETURN_IF_ERROR(missing.status());
      if (missing->empty()) {
        if (!assets.ok()) assets = FetchAssets();
        if (assets.ok()) return Serve(*assets);
        *missing = "the model's files: " + StatusMessage(assets.status());
        std::this_thread::sleep_for(
            kLook);  // workers that are there but refuse must not be asked in a frenzy
      }
      const TimePoint now = std::chrono::steady_clock::now();
      if (now - said < kSayWhatIsMissing) continue;
      LogInfo("waiting for workers: " + *missing);
      said = now;
    }
    return OkStatus();
  }

  void Stop() {
    health_.Set("readiness", false);
    service_.Drain();
    health_.Close();
    server_.Shutdown(config_.drain);
  }

 private:
  StatusOr<v1::GetModelAssetsResponse> FetchAssets() {
    StatusOr<v1::GetModelAssetsResponse> assets = NotFound("no worker asked yet");
    std::vector<std::string> workers = config_.decode;
    workers.insert(workers.end(), config_.prefill.begin(), config_.prefill.end());
    for (const std::string& address : workers) {
      assets = rpc::BlockOn(loop_, FetchModelAssets(loop_, address, loop_->Now() + std::chrono::seconds(2)),
                            std::chrono::seconds(5), "fetching the model's files from a worker");
      if (assets.ok()) break;
    }
    return assets;
  }

  Status Serve(const v1::GetModelAssetsResponse& assets) {
    // Set by the first worker that was usable, and never changed.
    ASSIGN_OR_RETURN(std::shared_ptr<const Frontend> frontend,
                     Frontend::Make(assets, cluster_.compat()->mode()));
    service_.Serve(std::move(frontend));
    health_.Set("readiness", true);
    return OkStatus();
  }

  static rpc::Task<std::string> Missing(Router* router, Duration at_most) {
    const TimePoint end = router->loop_->Now() + at_most;
    std::string missing;
    do {
      const auto decode = router->decode_.Choose({}, 0);
      const auto prefill = router->prefill_.Choose({}, 0);
      missing = (decode.ok() ? "" : "decode: " + StatusMessage(decode.status()) + ". ") +
                (prefill.ok() ? "" : "prefill: " + StatusMessage(prefill.status()));
      if (missing.empty()) break;
    } while (co_await rpc::SleepFor(router->loop_, kLook, &router->loop_->scope()) &&
             router->loop_->Now() < end);
    co_return missing;
  }

  const Config& config_;
  MetricsRegistry metrics_;
  std::unique_ptr<MetricsServer> metrics_server_;
  rpc::HealthState health_;
  ClusterView cluster_;
  WorkerPool<DecodeWorker> decode_;
  WorkerPool<PrefillWorker> prefill_;
  rpc::Server server_;
  rpc::Loop* loop_;
  rpc::HealthService health_service_;
  FlowContext flow_;
  GenerationService service_;
  std::vector<rpc::Task<void>> runs_;
};

Status Run(RoleProcess& process, const Config& config) {
  RETURN_IF_ERROR(process.Init(config.log_level));
  if (config.die_with_parent) RETURN_IF_ERROR(process.DieWithParent());
  Router router(config);
  std::string address;
  RETURN_IF_ERROR(router.Start(&address));
  LogInfo("listening on " + address);
  const Status status = router.AwaitWorkers(process);
  if (status.ok() && !process.stopping()) {
    process.Ready(address);
    process.WaitForStop();
  }
  router.Stop();
  return status;
}

int Main(int argc, char** argv) {
  RoleProcess process({.role = "router"});
  Config config;
  std::string help;
  const auto parsed = ParseConfig(argc, argv, config, &help);
  if (!parsed.ok()) return process.Exit(parsed.status());
  if (parsed->help) return std::puts(help.c_str()), kExitOk;
  return process.Exit(Run(process, config));
}

}  // namespace
}  // namespace cachalot

int main(int argc, char** argv) { return cachalot::Main(argc, argv); }

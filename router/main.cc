// cachalot-router: the public gRPC API in front of prefill and decode workers.

#include <atomic>
#include <optional>
#include <stop_token>

#include "common/base/address.h"
#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/cluster/assets.h"
#include "common/discovery/ares_resolver.h"
#include "common/metrics/server.h"
#include "common/rpc/block_on.h"
#include "common/rpc/health.h"
#include "router/config.h"
#include "router/decode_client.h"
#include "router/generation_service.h"
#include "router/membership.h"
#include "router/prefill_client.h"

namespace cachalot {
namespace {

constexpr int kPublicMessageBytes = 16 << 20;
constexpr Duration kLook = std::chrono::milliseconds(20);
constexpr Duration kSayWhatIsMissing = std::chrono::seconds(2);
constexpr Duration kLookForAnotherModel = std::chrono::milliseconds(100), kTryAgain = std::chrono::seconds(1);

/// Everything that lives on the router's loop.
class Router {
 public:
  explicit Router(const RouterConfig& config)
      : config_(config),
        server_({.listen = config.listen, .max_message_bytes = kPublicMessageBytes}),
        loop_(server_.AddLoop({.name = "router"})),
        health_service_(&server_, loop_, &health_),
        flow_{loop_, &decode_, &prefill_, config.flow, {}},
        service_(&server_, loop_, &flow_, &metrics_, config.debug_logits) {
    // What was admitted for the old model must not reach the new one.
    cluster_.on_change = [this] {
      flow_.generation = cluster_.generation();
      service_.Replace(nullptr);
      health_.Set("readiness", false);
      model_changed_ = true;
    };
  }

  Status Start(std::string* address) {
    RETURN_IF_ERROR(MakeMemberships());
    // First, so that nothing is served yet when it fails.
    ASSIGN_OR_RETURN(metrics_server_, MetricsServer::Start(config_.metrics_listen, metrics_));
    ASSIGN_OR_RETURN(const int port, server_.Start());
    *address = BoundAddress(config_.listen, port);
    loop_->Start();
    health_.Set("", true);
    health_.Set("liveness", true);
    loop_->Spawn(decode_members_->Run(), "decode members");
    loop_->Spawn(prefill_members_->Run(), "prefill members");
    return OkStatus();
  }

  bool model_changed() const { return model_changed_; }

  /// Any thread: ends AwaitWorkers, whatever it waits for.
  void AskStop() {
    loop_->Post([this] { stop_.Cancel(); });
  }

  /// Waits for one usable worker of each kind and for the model's files; says what is missing meanwhile.
  Status AwaitWorkers(RoleProcess& process) {
    model_changed_ = false;
    std::optional<v1::GetModelAssetsResponse> own;
    if (!config_.model.empty()) {
      ASSIGN_OR_RETURN(own, ReadModelAssets(config_.model));
    }
    for (TimePoint said = std::chrono::steady_clock::now();;) {
      auto missing = rpc::BlockOn(loop_, Missing(this, kSayWhatIsMissing), std::chrono::seconds(10),
                                  "waiting for workers");
      if (process.stopping()) return OkStatus();
      RETURN_IF_ERROR(missing.status());
      if (missing->empty()) {
        ASSIGN_OR_RETURN(const Model model, rpc::BlockOn(loop_, ModelOf(this), std::chrono::seconds(10),
                                                         "looking at the workers"));
        const StatusOr<v1::GetModelAssetsResponse> assets = FetchAssets(model);
        if (assets.ok() && own) RETURN_IF_ERROR(CheckOwnFiles(*own, *assets));
        if (assets.ok()) return Serve(own ? *own : *assets, model);
        *missing = "the model's files: " + StatusMessage(assets.status());
        // Workers that are there but refuse must not be asked in a frenzy.
        if (process.WaitForStop(std::chrono::steady_clock::now() + kLook)) return OkStatus();
      }
      const TimePoint now = std::chrono::steady_clock::now();
      if (now - said < kSayWhatIsMissing) continue;
      LogInfo("waiting for workers: " + *missing);
      said = now;
    }
  }

  void Stop() {
    health_.Set("readiness", false);
    service_.Drain();
    health_.Close();
    server_.Shutdown(config_.drain);
  }

 private:
  /// What the workers serve now, and which have it.
  struct Model {
    uint64_t generation = 0;
    v1::Compat compat;
    std::vector<std::string> workers;
  };

  static rpc::Task<Model> ModelOf(Router* router) {
    Model model{router->cluster_.generation(), *router->cluster_.compat(), router->decode_.UsableNames()};
    for (std::string& name : router->prefill_.UsableNames()) model.workers.push_back(std::move(name));
    co_return model;
  }

  Status MakeMemberships() {
    ASSIGN_OR_RETURN(const std::vector<Seed> decode, ParseSeeds(config_.decode));
    ASSIGN_OR_RETURN(const std::vector<Seed> prefill, ParseSeeds(config_.prefill));
    ASSIGN_OR_RETURN(resolver_, AresResolver::Make({.servers = config_.dns_server}));
    const MembershipOptions options{.names = {.interval = config_.dns_interval}};
    decode_members_ = std::make_unique<Membership<DecodeWorker>>(
        loop_, "decode", decode, resolver_.get(), &decode_,
        [this, epoch = RandomId()](const std::string& address) {
          auto client = std::make_unique<DecodeClient>(loop_, address, epoch, &cluster_);
          MemberClient* const member = client.get();
          return Membership<DecodeWorker>::Made{std::move(client), member};
        },
        options);
    prefill_members_ = std::make_unique<Membership<PrefillWorker>>(
        loop_, "prefill", prefill, resolver_.get(), &prefill_,
        [this](const std::string& address) {
          auto client = std::make_unique<PrefillClient>(loop_, address, &cluster_);
          MemberClient* const member = client.get();
          return Membership<PrefillWorker>::Made{std::move(client), member};
        },
        options);
    return OkStatus();
  }

  StatusOr<v1::GetModelAssetsResponse> FetchAssets(const Model& model) {
    StatusOr<v1::GetModelAssetsResponse> assets = NotFound("no worker asked yet");
    for (const std::string& address : model.workers) {
      assets = rpc::BlockOn(loop_, FetchModelAssets(loop_, address, loop_->Now() + std::chrono::seconds(2), &stop_),
                            std::chrono::seconds(5), "fetching the model's files from a worker");
      if (assets.ok()) break;
    }
    return assets;
  }

  Status Serve(const v1::GetModelAssetsResponse& assets, const Model& model) {
    ASSIGN_OR_RETURN(std::shared_ptr<const Frontend> frontend,
                     Frontend::Make(assets, model.compat.mode(), OutputIdentity(model.compat)));
    return rpc::BlockOn(loop_, Open(this, std::move(frontend), model.generation), std::chrono::seconds(10),
                        "opening the service");
  }

  /// Unless the workers have changed since: then they are looked at again.
  static rpc::Task<Status> Open(Router* router, std::shared_ptr<const Frontend> frontend, uint64_t generation) {
    if (router->cluster_.generation() == generation) {
      router->service_.Replace(std::move(frontend));
      router->health_.Set("readiness", true);
    }
    co_return OkStatus();
  }

  static rpc::Task<std::string> Missing(Router* router, Duration at_most) {
    const TimePoint end = router->loop_->Now() + at_most;
    std::string missing;
    for (;;) {
      const auto decode = router->decode_.Choose({}, {});
      const auto prefill = router->prefill_.Choose({}, {});
      missing = (decode.ok() ? "" : Say("decode", decode.status(), router->decode_members_->Trouble()) + ". ") +
                (prefill.ok() ? "" : Say("prefill", prefill.status(), router->prefill_members_->Trouble()));
      if (missing.empty() || router->loop_->Now() >= end) co_return missing;
      const bool slept = co_await rpc::SleepFor(router->loop_, kLook, &router->stop_);
      if (!slept) co_return missing;
    }
  }

  static std::string Say(const std::string& role, const Status& why, const std::string& names) {
    return role + ": " + StatusMessage(why) + (names.empty() ? "" : "; " + names);
  }

  const RouterConfig& config_;
  MetricsRegistry metrics_;
  std::unique_ptr<MetricsServer> metrics_server_;
  rpc::HealthState health_;
  rpc::CancelScope stop_;  // of waiting for workers
  ClusterView cluster_;
  WorkerPool<DecodeWorker> decode_;
  WorkerPool<PrefillWorker> prefill_;
  rpc::Server server_;
  rpc::Loop* loop_;
  rpc::HealthService health_service_;
  FlowContext flow_;
  GenerationService service_;
  std::unique_ptr<Membership<DecodeWorker>> decode_members_;
  std::unique_ptr<Membership<PrefillWorker>> prefill_members_;
  std::unique_ptr<AresResolver> resolver_;  // goes first: its answers come to the loop
  std::atomic<bool> model_changed_ = false;
};

/// Until a stop is asked for; the model of the workers may change meanwhile. One that cannot be served is tried again:
/// its files may be on their way.
void WaitForStop(RoleProcess& process, Router& router) {
  TimePoint again = TimePoint::max();
  Status served;
  while (!process.WaitForStop(std::chrono::steady_clock::now() + kLookForAnotherModel)) {
    const bool changed = router.model_changed();
    if (!changed && std::chrono::steady_clock::now() < again) continue;
    if (changed) LogInfo("the workers have changed to another model");
    const Status status = router.AwaitWorkers(process);
    if (!status.ok() && StatusMessage(status) != StatusMessage(served))
      LogError("the new model cannot be served: " + StatusMessage(status) + "; trying again");
    served = status;
    again = served.ok() ? TimePoint::max() : std::chrono::steady_clock::now() + kTryAgain;
  }
}

Status Serve(RoleProcess& process, const RouterConfig& config) {
  Router router(config);
  std::string address;
  RETURN_IF_ERROR(router.Start(&address));
  LogInfo("listening on " + address);
  const std::stop_callback on_stop(process.stop_token(), [&router] { router.AskStop(); });
  const Status status = router.AwaitWorkers(process);
  if (status.ok() && !process.stopping()) {
    process.Ready(address);
    WaitForStop(process, router);
  }
  router.Stop();
  return status;
}

}  // namespace
}  // namespace cachalot

int main(int argc, char** argv) {
  using namespace cachalot;
  RoleProcess process({.role = "router"});
  RouterConfig config;
  ConfigSchema schema("cachalot-router", "Serves the public gRPC API over prefill and decode workers.");
  AddFlags(schema, &config);
  return RunRole(process, schema, config.role, WordsOf(argc, argv), [&] { return Serve(process, config); });
}

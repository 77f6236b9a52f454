#include "expert_service/service.h"

#include <pthread.h>

#include <algorithm>
#include <thread>

#include "common/base/address.h"
#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/cluster/compat.h"
#include "common/kernels/kernels.h"
#include "common/model/forward.h"
#include "common/rpc/event.h"
#include "common/rpc/health.h"
#include "expert_service/dispatch_service.h"
#include "expert_service/expert_store.h"

namespace cachalot {
namespace {

constexpr Duration kHeartbeatEvery = std::chrono::milliseconds(500);
// A batch of many rows on few cores takes a while; a step thread that is silent for longer hangs.
constexpr Duration kHeartbeatLost = std::chrono::seconds(10);
constexpr Duration kLogEvery = std::chrono::seconds(1);  // refused calls

class Metrics final : public ExpertStepObserver {
 public:
  explicit Metrics(MetricsRegistry& registry)
      : calls_(registry.AddCounter("cachalot_expert_calls_total", "Calls answered")),
        rows_(registry.AddCounter("cachalot_expert_rows_total", "Token rows computed, one a call and token")),
        batches_(registry.AddCounter("cachalot_expert_batches_total", "Batches run")),
        errors_(registry.AddCounter("cachalot_expert_errors_total", "Calls refused or not answered")),
        callers_(registry.AddGauge("cachalot_expert_callers", "Connected callers")),
        batch_calls_(registry.AddHistogram("cachalot_expert_batch_calls", "Calls in a batch",
                                           ExponentialBuckets(1, 2, 8))),
        batch_rows_(registry.AddHistogram("cachalot_expert_batch_rows", "Token rows in a batch",
                                          ExponentialBuckets(1, 2, 14))),
        latency_(registry.AddHistogram("cachalot_expert_call_seconds", "From a call's arrival to its reply",
                                       ExponentialBuckets(0.00001, 2, 20))) {}

  void OnCallers(int64_t connected) override { callers_.Set(static_cast<double>(connected)); }
  void OnBatch(int64_t calls, int64_t rows) override {
    batches_.Add();
    rows_.Add(static_cast<double>(rows));
    batch_calls_.Observe(static_cast<double>(calls));
    batch_rows_.Observe(static_cast<double>(rows));
  }
  void OnReply(Duration latency) override {
    calls_.Add();
    latency_.Observe(Seconds(latency));
  }
  void OnError(const Status& error) override {
    errors_.Add();
    // A caller that sends nothing else could fill the disk.
    const TimePoint now = SteadyClock().Now();
    if (now < quiet_until_) return;
    quiet_until_ = now + kLogEvery;
    LogWarning("call refused: " + StatusMessage(error));
  }

 private:
  Counter &calls_, &rows_, &batches_, &errors_;
  Gauge& callers_;
  Histogram &batch_calls_, &batch_rows_, &latency_;
  TimePoint quiet_until_{};
};

v1::Description DescriptionOf(const ExpertStore& store, const kernels::KernelTable& kernels,
                              const ExpertServiceConfig& config, uint64_t epoch) {
  v1::Description description;
  description.set_role(v1::ROLE_EXPERT);
  description.set_epoch(epoch);
  *description.mutable_compat() = MakeCompat(store.weights(), KvLayout(KvShapeOf(store.config(), kernels.mode)), kernels);
  description.set_shard(store.spec().shard);
  description.set_shards(store.spec().shards);
  description.set_expert_begin(store.expert_begin());
  description.set_expert_end(store.expert_end());
  description.set_max_call_rows(static_cast<uint32_t>(config.max_call_rows));
  return description;
}

ExpertStepOptions StepOptions(const ExpertServiceConfig& config) {
  ExpertStepOptions options;
  options.batch_wait = std::chrono::microseconds(config.batch_wait_us);
  return options;
}

int ThreadCount(int wanted) {
  return wanted > 0 ? wanted : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ExpertCallLimits LimitsOf(const ExpertStore& store, const kernels::KernelTable& kernels,
                          const ExpertServiceConfig& config) {
  ExpertCallLimits limits = store.Limits(config.max_call_rows);
  if (kernels.mode == kernels::NumericMode::kBf16) limits.wire_type = ExpertWireType::kBf16;
  return limits;
}

rpc::ServerOptions ListenOptions(const ExpertServiceConfig& config) {
  return {.listen = config.listen, .max_message_bytes = kMaxGrpcFrameBytes};
}

}  // namespace

struct ExpertService::Impl {
  Impl(const ExpertServiceConfig& config, std::unique_ptr<ExpertStore> loaded,
       const kernels::KernelTable& kernels, MetricsRegistry& registry)
      : store(std::move(loaded)),
        threads(ThreadCount(config.threads)),
        metrics(registry),
        step([this](int layer) { return store->layer(layer); }, LimitsOf(*store, kernels, config),
             ExpertFfn(kernels, threads, store->config().swiglu_limit), StepOptions(config), &clock,
             &metrics),
        epoch(RandomId()),
        server(std::make_unique<rpc::Server>(ListenOptions(config))),
        control(server->AddLoop({.name = "control"})),
        step_loop(server->AddLoop({.name = "step", .spin_us = config.spin_us}, /*listens=*/false)),
        dispatch(server.get(), control, step_loop, &step, DescriptionOf(*store, kernels, config, epoch)),
        health_service(server.get(), control, &health) {}

  ~Impl() { server.reset(); }  // before what its handlers use

  rpc::Task<void> WatchStepThread() {
    while (!control->stopping()) {
      health.Set("liveness", control->Now() - dispatch.last_turn() < kHeartbeatLost);
      auto pause = rpc::SleepFor(control, kHeartbeatEvery, &control->scope());
      co_await pause;
    }
  }

  const SteadyClock clock;
  const std::unique_ptr<ExpertStore> store;
  ThreadPool threads;
  Metrics metrics;
  ExpertStep step;
  const uint64_t epoch;
  std::string address;
  rpc::HealthState health;
  std::unique_ptr<rpc::Server> server;
  rpc::Loop* const control;
  rpc::Loop* const step_loop;
  DispatchService dispatch;
  rpc::HealthService health_service;
  std::thread step_thread;
};

StatusOr<std::unique_ptr<ExpertService>> ExpertService::Start(const ExpertServiceConfig& config,
                                                              MetricsRegistry* metrics) {
  ASSIGN_OR_RETURN(const ShardSpec spec, ShardSpec::Parse(config.shard));
  ASSIGN_OR_RETURN(const kernels::KernelTable* kernels, kernels::SelectKernels(config.kernels, config.mode));
  ASSIGN_OR_RETURN(std::unique_ptr<ExpertStore> store, ExpertStore::Load(config.model, spec));
  auto impl = std::make_unique<Impl>(config, std::move(store), *kernels, *metrics);
  ASSIGN_OR_RETURN(const int port, impl->server->Start());
  impl->address = BoundAddress(config.listen, port);
  impl->control->Start();
  impl->step_thread = std::thread([raw = impl.get()] {
    pthread_setname_np(pthread_self(), "step");
    raw->dispatch.RunStepThread();
  });
  impl->control->Spawn(impl->WatchStepThread(), "liveness");
  for (const char* service : {"", "readiness"}) impl->health.Set(service, true);
  LogInfo("serves experts [" + std::to_string(impl->store->expert_begin()) + ", " +
          std::to_string(impl->store->expert_end()) + ") of " + std::to_string(impl->store->layers()) +
          " layers, shard " + config.shard + ", kernels " + kernels->name + ", " +
          std::to_string(impl->threads.threads()) + " threads, epoch " + HexId(impl->epoch));
  return std::unique_ptr<ExpertService>(new ExpertService(std::move(impl)));
}

ExpertService::ExpertService(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

ExpertService::~ExpertService() { Stop(Duration::zero()); }

const std::string& ExpertService::address() const { return impl_->address; }
uint64_t ExpertService::epoch() const { return impl_->epoch; }

void ExpertService::Stop(Duration grace) {
  if (!impl_->step_thread.joinable()) return;
  impl_->health.Close();
  impl_->dispatch.Drain();
  impl_->server->Shutdown(grace);
  impl_->step_thread.join();
}

}  // namespace cachalot

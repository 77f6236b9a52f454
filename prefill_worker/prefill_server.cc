#include "prefill_worker/prefill_server.h"

#include "common/base/seconds_text.h"
#include "common/moe/observed_experts.h"

#include <utility>

#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/cluster/compat.h"
#include "common/rpc/event.h"

namespace cachalot {
namespace {

// For answers on their way when the calls are over.
constexpr Duration kLastWords = std::chrono::milliseconds(500);

}  // namespace

PrefillServer::PrefillServer(PrefillServerOptions options, PrefillEngine engine, MetricsRegistry* registry)
    : options_(std::move(options)),
      engine_(std::move(engine)),
      registry_(registry),
      metrics_(*registry),
      prefix_metrics_(*registry, "cachalot_prefill"),
      pools_(KvLayout(KvShapeOf(engine_.weights->config, engine_.kernels->mode)), options_.max_sequences, options_.kv_tokens),
      model_(engine_.weights, *engine_.kernels, *engine_.threads),
      prefixes_(MakePrefixStore(model_, pools_.layout(), options_.prefix_cache)),
      step_(model_, options_.max_chunk_tokens, &metrics_, prefixes_.get()),
      server_({.listen = options_.listen, .max_message_bytes = kAssetsMessageBytes}),
      control_(server_.AddLoop({.name = "control"})) {
  description_.set_role(v1::ROLE_PREFILL);
  description_.set_epoch(RandomId());
  *description_.mutable_compat() = MakeCompat(*engine_.weights, pools_.layout(), *engine_.kernels);
  service_ = std::make_unique<PrefillService>(&server_, control_, model_.config(), &pools_, &step_,
                                              description_, &metrics_, options_.service);
  if (options_.assets) assets_ = std::make_unique<AssetsService>(&server_, control_, *options_.assets);
  health_service_ = std::make_unique<rpc::HealthService>(&server_, control_, &health_);
  collector_ = registry_->AddCollector([this] {
    metrics_.kv_blocks_used.Set(static_cast<double>(pools_.used_blocks()));
    if (prefixes_) prefix_metrics_.Refresh(prefixes_->stats());
  });
}

PrefillServer::~PrefillServer() {
  registry_->RemoveCollector(collector_);
  Shutdown();
}

PrefillStepLoop::MakeExperts PrefillServer::LocalBackend() const {
  return [this](rpc::Loop*) -> StatusOr<std::unique_ptr<ExpertBackend>> {
    return std::make_unique<LocalExperts>(ExpertTable(*engine_.weights), *engine_.kernels, *engine_.threads,
                                          engine_.weights->config.swiglu_limit);
  };
}

Status PrefillServer::Start(PrefillStepLoop::MakeExperts make_experts) {
  RETURN_IF_ERROR(server_.Start().status());
  control_->Start();
  health_.Set("liveness", true);
  const auto observe = [this](Duration time) { metrics_.expert_call_seconds.Observe(Seconds(time)); };
  const auto failed = [this] { metrics_.expert_failures.Add(); };
  RETURN_IF_ERROR(
      step_.Start(Observed(std::move(make_experts), &clock_, observe, failed), options_.experts_ready));
  control_->Spawn(WatchStepThread(), "liveness of the step thread");
  service_->Open();
  for (const char* service : {"", "readiness"}) health_.Set(service, true);
  return OkStatus();
}

bool PrefillServer::Drain(Duration limit) {
  health_.Set("readiness", false);
  health_.Set("", false);
  service_->Drain();
  return service_->WaitIdle(std::chrono::steady_clock::now() + limit);
}

void PrefillServer::Shutdown() {
  if (std::exchange(shut_down_, true)) return;
  health_.Close();
  server_.Shutdown(kLastWords);
  step_.Stop();
}

// The control loop may be well while the step thread is not.
rpc::Task<void> PrefillServer::WatchStepThread() {
  bool alive = true;
  while (!control_->stopping()) {
    const bool beats = control_->Now() - step_.last_beat() < options_.hang_limit;
    if (alive && !beats)
      LogError("the step thread has not shown a sign of life for " + SecondsText(options_.hang_limit));
    if (!alive && beats) LogInfo("the step thread is alive again");
    alive = beats;
    health_.Set("liveness", alive);
    co_await rpc::SleepFor(control_, std::chrono::seconds(1), &control_->scope());
  }
}

}  // namespace cachalot

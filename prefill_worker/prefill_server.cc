#include "prefill_worker/prefill_server.h"

#include <utility>

#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/cluster/compat.h"
#include "common/rpc/event.h"

namespace cachalot {
namespace {

// A prompt of a million tokens is a message of some 4 MiB.
constexpr int kMaxMessageBytes = 16 << 20;

// For answers on their way when the calls are over.
constexpr Duration kLastWords = std::chrono::milliseconds(500);

}  // namespace

PrefillServer::PrefillServer(PrefillServerOptions options, PrefillEngine engine, MetricsRegistry* registry)
    : options_(std::move(options)),
      engine_(std::move(engine)),
      registry_(registry),
      metrics_(*registry),
      pools_(KvLayout(KvShapeOf(engine_.weights->config)), options_.max_sequences, options_.kv_tokens),
      model_(engine_.weights, *engine_.kernels, *engine_.threads),
      step_(engine_.step_loop, model_, *engine_.experts, options_.max_chunk_tokens, &metrics_),
      server_({.listen = options_.listen, .max_message_bytes = kMaxMessageBytes}),
      control_(server_.AddLoop({.name = "control"})) {
  description_.set_role(v1::ROLE_PREFILL);
  description_.set_epoch(RandomId());
  *description_.mutable_compat() = MakeCompat(*engine_.weights, pools_.layout(), *engine_.kernels);
  service_ = std::make_unique<PrefillService>(&server_, control_, model_.config(), &pools_, &step_, description_,
                                              &metrics_, options_.service);
  health_service_ = std::make_unique<rpc::HealthService>(&server_, control_, &health_);
  collector_ = registry_->AddCollector(
      [this] { metrics_.kv_blocks_used.Set(static_cast<double>(pools_.used_blocks())); });
}

PrefillServer::~PrefillServer() {
  registry_->RemoveCollector(collector_);
  Shutdown();
}

StatusOr<int> PrefillServer::Start() {
  ASSIGN_OR_RETURN(const int port, server_.Start());
  control_->Start();
  step_.Start();
  control_->Spawn(WatchStepThread(), "liveness of the step thread");
  for (const char* service : {"", "liveness", "readiness"}) health_.Set(service, true);
  return port;
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
      LogError("the step thread has not shown a sign of life for " + std::to_string(Seconds(options_.hang_limit)) +
               " s");
    if (!alive && beats) LogInfo("the step thread is alive again");
    alive = beats;
    health_.Set("liveness", alive);
    co_await rpc::SleepFor(control_, std::chrono::seconds(1), &control_->scope());
  }
}

}  // namespace cachalot

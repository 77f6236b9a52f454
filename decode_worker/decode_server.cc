#include "decode_worker/decode_server.h"

#include "common/moe/observed_experts.h"

#include <functional>

#include "common/base/ids.h"
#include "common/base/log.h"
#include "common/cluster/compat.h"
#include "common/rpc/block_on.h"
#include "common/rpc/event.h"

namespace cachalot {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kTick = milliseconds(50);
// Frames of KV rows and, when debugging, the logits of a batch.
constexpr int kMaxMessageBytes = 64 << 20;

}  // namespace

DecodeServer::DecodeServer(std::shared_ptr<const ModelWeights> weights, const kernels::KernelTable& kernels,
                           const Clock& clock, MetricsRegistry& metrics, DecodeServerOptions options)
    : options_(std::move(options)),
      weights_(std::move(weights)),
      kernels_(kernels),
      threads_(options_.threads),
      model_(weights_, kernels, threads_),
      pools_(KvLayout(KvShapeOf(weights_->config, kernels_.mode)), options_.max_sequences, options_.kv_tokens),
      compat_(MakeCompat(*weights_, pools_.layout(), kernels)),
      metrics_(metrics),
      step_(model_, clock, options_.decode, options_.spin_us),
      leases_(clock, RandomId(), options_.leases),
      intake_(leases_, weights_->config, std::bind_front(&DecodeServer::StartSequence, this)),
      server_(std::make_unique<rpc::Server>(rpc::ServerOptions{options_.listen, kMaxMessageBytes})),
      control_(server_->AddLoop({.name = "control"})),
      sessions_(server_.get(), control_, leases_, pools_, step_, weights_->config, compat_, metrics_,
                options_.sessions),
      kv_(server_.get(), control_, intake_, leases_, metrics_, options_.kv_linger),
      health_service_(server_.get(), control_, &health_) {
  server_->Unary(control_, &cluster_, &decltype(cluster_)::RequestDescribe,
                 std::bind_front(&DecodeServer::Describe, this));
  if (options_.assets) assets_ = std::make_unique<AssetsService>(server_.get(), control_, *options_.assets);
}

DecodeServer::~DecodeServer() {
  Stop();
  server_.reset();  // the services may go after it only
}

Status DecodeServer::Start(StepLoop::MakeExperts make_experts) {
  RETURN_IF_ERROR(server_->Start().status());
  control_->Start();
  // Routers may have said Hello and probes ask: neither waits for the experts.
  control_->Spawn(Tick(), "tick");
  const auto deliver = [this](std::vector<TokenOut> tokens, StepFigures figures) {
    if (figures.batch > 0) {
      metrics_.batch.Observe(static_cast<double>(figures.batch));
      metrics_.step_seconds.Observe(Seconds(figures.duration));
    }
    auto shared = std::make_shared<std::vector<TokenOut>>(std::move(tokens));
    control_->Post([this, shared] { sessions_.Deliver(std::move(*shared)); });
  };
  const auto observe = [this](Duration time) { metrics_.expert_call_seconds.Observe(Seconds(time)); };
  const auto failed = [this] { metrics_.expert_failures.Add(); };
  RETURN_IF_ERROR(step_.Start(Observed(std::move(make_experts), &steady_, observe, failed), deliver,
                              options_.experts_ready));
  control_->Post([this] {
    ready_ = true;
    sessions_.Accept();
    UpdateHealth();
  });
  return OkStatus();
}

StepLoop::MakeExperts DecodeServer::LocalBackend() {
  return [this](rpc::Loop*) -> StatusOr<std::unique_ptr<ExpertBackend>> {
    return std::make_unique<LocalExperts>(ExpertTable(*weights_), kernels_, threads_,
                                          weights_->config.swiglu_limit);
  };
}

void DecodeServer::StartSequence(Lease& lease, int32_t first_token) {
  LogDebug("[" + lease.request_id + "] KV of " + std::to_string(lease.kv.tokens()) +
           " tokens complete, attempt " + std::to_string(lease.attempt));
  step_.Join(lease.id, std::move(lease.state), std::move(lease.kv), first_token, lease.preemptible);
}

rpc::Task<void> DecodeServer::Tick() {
  while (!control_->stopping()) {
    sessions_.Tick();
    kv_.Tick();
    UpdateHealth();
    co_await rpc::SleepFor(control_, kTick);
  }
}

void DecodeServer::UpdateHealth() {
  const bool alive = control_->Now() - step_.alive() < options_.hang_limit;
  health_.Set("liveness", alive);
  health_.Set("readiness", ready_);
  health_.Set("", alive && ready_);
}

rpc::Task<Status> DecodeServer::Describe(rpc::ServerCall&, const v1::DescribeRequest&,
                                         v1::Description* reply) {
  reply->set_role(v1::ROLE_DECODE);
  reply->set_epoch(leases_.epoch());
  *reply->mutable_compat() = compat_;
  *reply->mutable_load() = sessions_.CurrentLoad();
  co_return OkStatus();
}

void DecodeServer::Drain(Duration at_most) {
  const Duration last_words = options_.sessions.last_words;
  const Status status = rpc::BlockOn(control_, WaitDrained(control_->Now() + at_most),
                                     at_most + last_words + seconds(1), "the drain");
  drained_ = true;
  if (!status.ok()) LogWarning("drain: " + StatusMessage(status));
}

rpc::Task<Status> DecodeServer::WaitDrained(TimePoint deadline) {
  ready_ = false;
  UpdateHealth();
  sessions_.Refuse("draining: this decode worker takes no new requests");
  LogInfo("draining: " + std::to_string(leases_.size()) + " leases live");
  while (leases_.size() > 0 && control_->Now() < deadline && !control_->stopping())
    co_await rpc::SleepFor(control_, milliseconds(10));
  const size_t left = leases_.size();
  sessions_.EndAll(Unavailable("the decode worker shuts down"));
  // A little longer than a Session waits for a router that does not read.
  const TimePoint flushed = control_->Now() + options_.sessions.last_words + milliseconds(100);
  while (sessions_.open() > 0 && control_->Now() < flushed && !control_->stopping())
    co_await rpc::SleepFor(control_, milliseconds(10));
  if (left > 0) co_return DeadlineExceeded(std::to_string(left) + " leases had not ended and were dropped");
  co_return OkStatus();
}

void DecodeServer::Stop() {
  health_.Close();
  // The control loop ends first: it mails to the step thread. What a drained Session sent last, its status
  // among it, may still be on its way.
  server_->Shutdown(drained_ ? options_.sessions.last_words : Duration::zero());
  step_.Stop();
}

}  // namespace cachalot

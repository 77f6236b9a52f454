#include "decode_worker/step_loop.h"

#include <pthread.h>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/base/seconds_text.h"

namespace cachalot {
namespace {

using std::chrono::milliseconds;

// How long an idle thread sleeps before it shows again that it is alive.
constexpr Duration kIdleSleep = milliseconds(200);
// Between two tries of a step while experts are away or leases that do not run yet hold all KV; what is
// posted is served at once.
constexpr Duration kRetry = milliseconds(20);

}  // namespace

StepLoop::StepLoop(Model& model, const Clock& clock, DecodeOptions options, int spin_us)
    : model_(model), clock_(clock), options_(options), loop_({.name = "step", .spin_us = spin_us}) {
  Beat();
}

StepLoop::~StepLoop() { Stop(); }

Status StepLoop::Start(MakeExperts make_experts, Deliver deliver, Duration at_most) {
  CHECK(!thread_.joinable());
  deliver_ = std::move(deliver);
  auto started = std::make_shared<std::promise<Status>>();
  std::future<Status> result = started->get_future();
  thread_ = std::thread([this, started, make_experts = std::move(make_experts)]() mutable {
    pthread_setname_np(pthread_self(), "step");
    Main(std::move(make_experts), started.get());
  });
  if (result.wait_for(at_most) != std::future_status::ready)
    return DeadlineExceeded("the experts were not ready in " + SecondsText(at_most));
  return result.get();
}

void StepLoop::Stop() {
  if (!thread_.joinable()) return;
  Send(StopMessage{});
  thread_.join();
}

void StepLoop::Main(MakeExperts make_experts, std::promise<Status>* started) {
  auto experts = make_experts(&loop_);
  if (experts.ok()) {
    experts_ = std::move(*experts);
    flow_ = std::make_unique<DecodeFlow>(model_, *experts_, clock_, options_, [this] {
      Beat();
      return awaited_.load(std::memory_order_relaxed);
    });
    started->set_value(OkStatus());
    RunSteps();
    flow_.reset();
  } else {
    started->set_value(experts.status());
  }
  running_ = 0;
  experts_.reset();
  loop_.Shutdown(Duration::zero());
  while (loop_.PollOnce(TimePoint::max()) != rpc::Loop::Poll::kStopped) {
  }
}

void StepLoop::RunSteps() {
  std::vector<TokenOut> tokens;
  for (;;) {
    WaitForMail(TimePoint::min());
    if (stop_) return;
    const TimePoint begin = loop_.Now();
    const DecodeFlow::Progress progress = flow_->Step(tokens);
    starved_.store(flow_->starved(), std::memory_order_relaxed);
    const bool stepped = progress == DecodeFlow::Progress::kStepped;
    if (stepped || !tokens.empty()) {
      running_.store(static_cast<int64_t>(flow_->running()), std::memory_order_relaxed);
      deliver_(std::move(tokens), {stepped ? flow_->last_batch() : 0, loop_.Now() - begin});
      tokens.clear();
    }
    switch (progress) {
      case DecodeFlow::Progress::kStepped:
        break;
      case DecodeFlow::Progress::kIdle:
        loop_.PollOnce(loop_.Now() + kIdleSleep);
        break;
      case DecodeFlow::Progress::kExpertsAway:
      case DecodeFlow::Progress::kNoRoom:
        WaitForMail(loop_.Now() + kRetry);
        break;
      case DecodeFlow::Progress::kInterrupted:
        WaitForMail(TimePoint::min());
        if (stop_) return;
        LogInfo("slow experts: a step is done again after " + SecondsText(loop_.Now() - begin) +
                ", behind cancelled requests");
        break;
    }
  }
}

// Takes the mail that is there and, until `until`, what comes; the loop's own work runs meanwhile.
void StepLoop::WaitForMail(TimePoint until) {
  bool more = true;
  while (more && !stop_) {
    Beat();
    more = loop_.PollOnce(until) == rpc::Loop::Poll::kProgress;
    TakeMail();
  }
}

void StepLoop::TakeMail() {
  {
    std::lock_guard lock(mutex_);
    taken_.swap(mail_);
    awaited_.store(DecodeFlow::Awaited::kNothing, std::memory_order_relaxed);
  }
  if (taken_.empty()) return;
  for (Message& message : taken_) std::visit([this](auto& m) { Take(m); }, message);
  taken_.clear();
  running_.store(static_cast<int64_t>(flow_->running()), std::memory_order_relaxed);
}

void StepLoop::Send(Message message) {
  bool wake = false;
  {
    std::lock_guard lock(mutex_);
    wake = mail_.empty();
    if (std::holds_alternative<StopMessage>(message)) awaited_ = DecodeFlow::Awaited::kStop;
    if (std::holds_alternative<RemoveMessage>(message) && awaited_ == DecodeFlow::Awaited::kNothing)
      awaited_ = DecodeFlow::Awaited::kRemove;
    mail_.push_back(std::move(message));
  }
  if (wake) loop_.Post([] {});
}

void StepLoop::Take(JoinMessage& message) {
  flow_->Join(message.id, std::move(message.state), std::move(message.kv), message.first_token,
              message.preemptible);
}

void StepLoop::Take(RemoveMessage& message) {
  for (uint64_t id : message.ids) flow_->Remove(id);
}

void StepLoop::Take(AcknowledgeMessage& message) {
  for (const auto& [id, next_index] : message.next_indices) flow_->Acknowledge(id, next_index);
}

void StepLoop::Join(uint64_t id, SequenceState state, SequenceKv kv, int32_t first_token, bool preemptible) {
  Send(JoinMessage{id, std::move(state), std::move(kv), first_token, preemptible});
}

void StepLoop::Remove(std::vector<uint64_t> ids) { Send(RemoveMessage{std::move(ids)}); }

void StepLoop::Reclaim(int64_t tokens) { Send(ReclaimMessage{tokens}); }

void StepLoop::Acknowledge(std::vector<std::pair<uint64_t, int64_t>> next_indices) {
  Send(AcknowledgeMessage{std::move(next_indices)});
}

}  // namespace cachalot

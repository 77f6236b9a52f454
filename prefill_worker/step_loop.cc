#include "prefill_worker/step_loop.h"

#include <pthread.h>

#include <utility>

#include "common/base/check.h"

namespace cachalot {
namespace {

// An idle step thread blocks; it wakes this often to show that it could work.
constexpr Duration kIdleBeat = std::chrono::seconds(1);

}  // namespace

PrefillStepLoop::PrefillStepLoop(rpc::Loop* loop, Model& model, ExpertBackend& experts, int64_t max_chunk_tokens,
                   PrefillMetrics* metrics)
    : loop_(loop), experts_(experts, this), metrics_(metrics), flow_(model, experts_, max_chunk_tokens) {
  Beat();
}

PrefillStepLoop::~PrefillStepLoop() { Stop(); }

void PrefillStepLoop::Start() {
  CHECK(!thread_.joinable());
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "step");
    Run();
  });
}

void PrefillStepLoop::Stop() {
  if (!thread_.joinable()) return;
  loop_->Shutdown(Duration::zero());
  thread_.join();
}

void PrefillStepLoop::Submit(PrefillJob job, std::shared_ptr<KvEncoder> encoder) {
  job.sink = encoder;
  const uint64_t id = job.id;
  Send({Mail::Kind::kSubmit, id, 0, std::make_shared<PrefillJob>(std::move(job)), std::move(encoder)});
}

void PrefillStepLoop::Cancel(uint64_t id) { Send({Mail::Kind::kCancel, id}); }

void PrefillStepLoop::Release(uint64_t id, int64_t bytes) { Send({Mail::Kind::kRelease, id, bytes}); }

void PrefillStepLoop::Send(Mail mail) {
  loop_->Post([this, mail = std::move(mail)]() mutable { mail_.push_back(std::move(mail)); });
}

void PrefillStepLoop::Run() {
  const auto next_turn = [this] {
    return loop_->PollOnce(flow_.waiting() > 0 ? TimePoint::min() : loop_->Now() + kIdleBeat);
  };
  while (next_turn() != rpc::Loop::Poll::kStopped) {
    Beat();
    HandleMail();
    if (flow_.waiting() > 0) RunChunk();
  }
  // Whatever is left holds KV, whose pools may not outlive this thread.
  mail_.clear();
  for (const auto& [id, encoder] : encoders_) flow_.Cancel(id);
  encoders_.clear();
}

void PrefillStepLoop::HandleMail() {
  for (Mail& mail : std::exchange(mail_, {})) {
    if (mail.kind == Mail::Kind::kSubmit) {
      encoders_[mail.id] = std::move(mail.encoder);
      flow_.Submit(std::move(*mail.job));
      continue;
    }
    const auto found = encoders_.find(mail.id);
    if (found == encoders_.end()) continue;
    if (mail.kind == Mail::Kind::kRelease) {
      found->second->Release(mail.bytes);
      if (!found->second->done()) continue;
    } else {
      flow_.Cancel(mail.id);
    }
    encoders_.erase(found);
  }
}

void PrefillStepLoop::RunChunk() {
  const TimePoint start = loop_->Now();
  flow_.Step();
  metrics_->chunk_seconds.Observe(Seconds(loop_->Now() - start));
  metrics_->chunk_tokens.Observe(static_cast<double>(flow_.last_chunk_tokens()));
  metrics_->prompt_tokens.Add(static_cast<double>(flow_.last_chunk_tokens()));
  std::erase_if(encoders_, [](const auto& entry) { return entry.second->done(); });
}

}  // namespace cachalot

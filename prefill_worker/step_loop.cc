#include "prefill_worker/step_loop.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/seconds_text.h"

namespace cachalot {
namespace {

// Between two tries of experts that are away.
constexpr Duration kExpertRetry = std::chrono::milliseconds(20);

}  // namespace

PrefillStepLoop::PrefillStepLoop(Model& model, int64_t max_chunk_tokens, PrefillMetrics* metrics,
                                 PrefixStore* prefixes, Duration idle_beat)
    : model_(model),
      max_chunk_tokens_(max_chunk_tokens),
      metrics_(metrics),
      prefixes_(prefixes),
      idle_beat_(idle_beat) {
  Beat();
}

PrefillStepLoop::~PrefillStepLoop() { Stop(); }

Status PrefillStepLoop::Start(MakeExperts make_experts, Duration at_most) {
  CHECK(!thread_.joinable());
  auto started = std::make_shared<std::promise<Status>>();
  std::future<Status> result = started->get_future();
  thread_ = std::thread([this, started, make_experts = std::move(make_experts)] {
    pthread_setname_np(pthread_self(), "step");
    Main(make_experts, started.get());
  });
  if (result.wait_for(at_most) != std::future_status::ready)
    return DeadlineExceeded("the experts were not ready in " + SecondsText(at_most));
  return result.get();
}

void PrefillStepLoop::Stop() {
  if (!thread_.joinable()) return;
  loop_.Post([this] { stop_ = true; });
  thread_.join();
}

void PrefillStepLoop::Submit(PrefillJob job, std::shared_ptr<KvEncoder> encoder) {
  job.sink = encoder;
  const uint64_t id = job.id;
  Send({Mail::Kind::kSubmit, id, 0, std::make_shared<PrefillJob>(std::move(job)), std::move(encoder)});
}

void PrefillStepLoop::Cancel(uint64_t id) { Send({Mail::Kind::kCancel, id}); }

void PrefillStepLoop::Release(uint64_t id, int64_t bytes) { Send({Mail::Kind::kRelease, id, bytes}); }

void PrefillStepLoop::ReleaseRows(uint64_t id, int64_t bytes) { Send({Mail::Kind::kReleaseRows, id, bytes}); }

void PrefillStepLoop::Send(Mail mail) {
  loop_.Post([this, mail = std::move(mail)]() mutable { mail_.push_back(std::move(mail)); });
}

void PrefillStepLoop::Main(const MakeExperts& make_experts, std::promise<Status>* started) {
  auto experts = make_experts(&loop_);
  if (!experts.ok()) return started->set_value(experts.status());
  experts_ = std::make_unique<PatientExperts>(std::move(*experts), this);
  flow_ = std::make_unique<PrefillFlow>(model_, *experts_, max_chunk_tokens_, prefixes_);
  started->set_value(OkStatus());
  RunChunks();
  // What is left holds KV, whose pools may go with this thread, or streams of the loop.
  encoders_.clear();
  mail_.clear();
  flow_.reset();
  experts_.reset();
}

Status PrefillStepLoop::PatientExperts::Begin(const ExpertCall& call) {
  call_ = call;
  begun_ = step_->loop_.Now();
  return TryBegin();
}

Status PrefillStepLoop::PatientExperts::TryBegin() {
  for (;;) {
    step_->Beat();
    Status status = step_->ChunkGoesOn();
    if (!status.ok()) {
      outage_.Over();  // the next chunk's is another
      return status;
    }
    status = experts_->Begin(call_);
    if (status.ok() || !Again(status)) return status;
  }
}

Status PrefillStepLoop::PatientExperts::Wait() {
  for (;;) {
    Status status = experts_->Wait();
    if (status.ok()) outage_.Over();
    if (status.ok() || !Again(status)) return status;
    RETURN_IF_ERROR(TryBegin());
  }
}

bool PrefillStepLoop::PatientExperts::Again(const Status& status) {
  // One that lives and took a whole time-out has been waited for already.
  if (status.code() != StatusCode::kUnavailable || step_->stop_) return false;
  const TimePoint now = step_->loop_.Now();
  if (!outage_.Failed(begun_, now)) return false;
  step_->Beat();
  const TimePoint until = now + kExpertRetry;
  // Connecting again is the loop's work. Mail waits for the end of the chunk, as always, but for ChunkGoesOn.
  while (step_->loop_.Now() < until) step_->loop_.PollOnce(until);
  return true;
}

void PrefillStepLoop::RunChunks() {
  while (!stop_) {
    // Mail that came inside a chunk has woken nobody.
    const bool busy = flow_->ready() || !mail_.empty();
    loop_.PollOnce(busy ? TimePoint::min() : loop_.Now() + idle_beat_);
    Beat();
    HandleMail();
    if (flow_->ready() && !stop_) RunChunk();
  }
}

void PrefillStepLoop::HandleMail() {
  for (Mail& mail : std::exchange(mail_, {})) {
    if (mail.kind == Mail::Kind::kSubmit) {
      encoders_[mail.id] = std::move(mail.encoder);
      flow_->Submit(std::move(*mail.job));
      continue;
    }
    const auto found = encoders_.find(mail.id);
    if (found == encoders_.end()) continue;
    if (mail.kind == Mail::Kind::kReleaseRows) {
      found->second->ReleaseRows(mail.bytes);
      continue;
    }
    if (mail.kind == Mail::Kind::kRelease) {
      found->second->Release(mail.bytes);
      if (!found->second->done()) continue;
    } else {
      flow_->Cancel(mail.id);
    }
    encoders_.erase(found);
  }
}

/// Asked between two layers of a chunk.
Status PrefillStepLoop::ChunkGoesOn() {
  while (loop_.PollOnce(TimePoint::min()) == rpc::Loop::Poll::kProgress) {
  }
  if (stop_) return Unavailable("the prefill worker ends");
  std::vector<uint64_t> gone;
  for (const Mail& mail : mail_)
    if (mail.kind == Mail::Kind::kCancel) gone.push_back(mail.id);
  if (gone.empty()) return OkStatus();
  const bool wanted = flow_->ChunkWanted([&gone](uint64_t id) { return std::ranges::find(gone, id) != gone.end(); });
  return wanted ? OkStatus() : Cancelled("all whom the chunk was for have gone");
}

void PrefillStepLoop::RunChunk() {
  const TimePoint start = loop_.Now();
  flow_->Step();
  metrics_->chunk_seconds.Observe(Seconds(loop_.Now() - start));
  metrics_->chunk_tokens.Observe(static_cast<double>(flow_->last_chunk_tokens()));
  metrics_->prompt_tokens.Add(static_cast<double>(flow_->last_chunk_tokens()));
  std::erase_if(encoders_, [](const auto& entry) { return entry.second->done(); });
}

}  // namespace cachalot

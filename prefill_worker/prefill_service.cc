#include "prefill_worker/prefill_service.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/base/seconds_text.h"
#include "common/cluster/compat.h"
#include "prefill_worker/prefill_request.h"
#include "prefill_worker/watchdog.h"

namespace cachalot {
namespace {

constexpr size_t kMaxChannels = 64;
// Blocks come free on other threads, without a word.
constexpr Duration kLookForKv = std::chrono::milliseconds(5);
// Routers ask refused requests again within 1 s.
constexpr Duration kWanted = std::chrono::seconds(2);

v1::PrefillEvent ProgressOf(int64_t tokens_done) {
  v1::PrefillEvent event;
  event.mutable_progress()->set_tokens_done(tokens_done);
  return event;
}

v1::PrefillEvent FirstTokenOf(const JobEvent& event) {
  v1::PrefillEvent message;
  message.mutable_first_token()->set_token(event.token);
  message.mutable_first_token()->set_finish(ToProto(event.finish));
  message.mutable_first_token()->set_cached_tokens(event.cached);
  if (!event.logprobs.empty())
    *message.mutable_first_token()->mutable_logprobs() = ToProto(event.logprobs[0]);
  return message;
}

v1::PrefillEvent CommittedOf(int64_t tokens, int64_t bytes) {
  v1::PrefillEvent message;
  message.mutable_committed()->set_tokens(tokens);
  message.mutable_committed()->set_bytes(bytes);
  return message;
}

// The router may try again elsewhere: a shard that was too slow is as good as one that is away.
/// Nothing but experts keeps a step from its end in this way.
bool IsOutage(const JobEvent& event) {
  return event.kind == JobEvent::Kind::kFailed && (event.error.code() == StatusCode::kUnavailable ||
                                                   event.error.code() == StatusCode::kDeadlineExceeded);
}

Status JobError(const Status& status) {
  if (status.code() != StatusCode::kDeadlineExceeded) return status;
  return Unavailable(StatusMessage(status));
}

}  // namespace

// One running call. Lives in its handler's frame.
struct PrefillService::Job {
  Job(rpc::Loop* loop, rpc::ServerCall* call)
      : events(loop), writer_dog(loop, [call] { call->TryCancel(); }), helpers(loop), arrival(loop->Now()) {}

  uint64_t id = 0;
  std::string name;  // "[request-id]", before every message
  int64_t context_tokens = 0, done_tokens = 0;
  bool queued = true;  // waits or is computed
  EventQueue events;
  std::shared_ptr<KvPush> push;  // null when nothing will be pushed
  int64_t unreleased_bytes = 0;  // sent, and not yet told to the step thread
  int64_t unread_row_bytes = 0;  // of `events`, and of the one that is being written
  bool committed = false;        // the verdict is OK
  Watchdog writer_dog;
  rpc::TaskGroup helpers;  // use this job
  const TimePoint arrival;
  TimePoint last_event{};  // to the caller
};

PrefillService::PrefillService(rpc::Server* server, rpc::Loop* control, const ModelConfig& config,
                               BlockPools* pools, PrefillStepLoop* step, v1::Description description,
                               PrefillMetrics* metrics, PrefillServiceOptions options)
    : control_(control),
      config_(config),
      pools_(pools),
      step_(step),
      description_(std::move(description)),
      metrics_(metrics),
      options_(options) {
  server->ServerStreaming(control, &prefill_, &v1::Prefill::AsyncService::RequestPrefill,
                          std::bind_front(&PrefillService::Prefill, this));
  server->Unary(control, &cluster_, &v1::Cluster::AsyncService::RequestDescribe,
                std::bind_front(&PrefillService::Describe, this));
}

rpc::Task<Status> PrefillService::Describe(rpc::ServerCall&, const v1::DescribeRequest&,
                                           v1::Description* description) {
  *description = description_;
  v1::Load* load = description->mutable_load();
  int64_t waiting = 0;
  for (const auto& [id, job] : jobs_)
    if (job->queued) waiting += job->context_tokens - job->done_tokens;
  load->set_running_sequences(queued_);
  load->set_waiting_tokens(waiting);
  load->set_free_kv_tokens(pools_->free_tokens());
  load->set_used_kv_blocks(pools_->used_blocks());
  load->set_kv_wanted(!kv_line_.empty() || control_->Now() < wanted_until_);
  load->set_not_serving(NotServing());
  co_return OkStatus();
}

rpc::Task<Status> PrefillService::Prefill(rpc::ServerCall& call, const v1::PrefillRequest& request,
                                          Writer& writer) {
  metrics_->requests.Add();
  StatusOr<SequenceState> state = Admit(request);
  if (!state.ok()) {
    metrics_->failed_requests.Add();
    LogWarning("[" + request.state().request_id() + "] prefill refused: " + state.status().ToString());
    co_return state.status();
  }
  Job job(control_, &call);
  JoinQueue(*state, &job);
  job.helpers.Spawn(job.writer_dog.Run(), "watchdog of a prefill call");
  rpc::CancelCallback gone(&call.scope(), [&job] { job.events.Push({.kind = JobEvent::Kind::kGone}); });
  StatusOr<SequenceKv> kv = co_await AwaitKv(call, &job, writer);
  LeaveKvLine(&job);
  Status status = kv.status();
  if (status.ok()) {
    StartJob(call, request, std::move(*state), std::move(*kv), &job);
    status = co_await FollowJob(call, &job, writer);
  }
  EndJob(&job, status);
  co_await job.helpers.JoinAll();
  co_return status;
}

std::string PrefillService::NotServing() const {
  const Phase phase = phase_.load();
  if (phase == Phase::kStarting) return "starting: this prefill worker has not reached its experts yet";
  return phase == Phase::kDraining ? "draining: this prefill worker takes no new requests" : "";
}

StatusOr<SequenceState> PrefillService::Admit(const v1::PrefillRequest& request) {
  if (const std::string why = NotServing(); !why.empty()) return Unavailable(why);
  ASSIGN_OR_RETURN(SequenceState state,
                   AdmitPrefill(request, description_.compat(), config_.vocab_size, options_.debug_logits));
  if (queued_ >= options_.max_queue) {
    wanted_until_ = control_->Now() + kWanted;
    return ResourceExhausted("the queue is full: " + std::to_string(queued_) + " jobs, --max-queue is " +
                             std::to_string(options_.max_queue));
  }
  const auto tokens = static_cast<int64_t>(state.prompt.size() + state.emitted.size());
  if (!pools_->CanHold(tokens))
    return OutOfRange("prompt and output so far have " + std::to_string(tokens) +
                      " tokens, more than this prefill worker's KV of " + std::to_string(pools_->total_tokens()) +
                      "; raise its --kv-tokens");
  return state;
}

void PrefillService::JoinQueue(const SequenceState& state, Job* job) {
  job->id = next_id_++;
  job->name = "[" + state.request_id + "]";
  job->context_tokens = static_cast<int64_t>(state.prompt.size() + state.emitted.size());
  job->last_event = job->arrival;
  jobs_[job->id] = job;
  metrics_->queue_length.Set(++queued_);
  AddOpenCalls(1);
}

/// In the order of arrival; until LeaveKvLine nobody behind gets any. RESOURCE_EXHAUSTED: none came free in `kv_wait`.
rpc::Task<StatusOr<SequenceKv>> PrefillService::AwaitKv(rpc::ServerCall& call, Job* job, Writer& writer) {
  kv_line_.push_back(job);
  const TimePoint end = job->arrival + options_.kv_wait;
  for (;;) {
    const TimePoint now = control_->Now();
    const bool first = kv_line_.front() == job;
    if (first || now >= end) {
      StatusOr<SequenceKv> kv = pools_->Reserve(job->context_tokens);
      if (kv.ok() || now >= end) co_return kv;
    }
    const TimePoint look = first ? now + kLookForKv : end;
    auto event = co_await job->events.PopUntil(std::min(look, job->last_event + options_.heartbeat));
    if (call.is_cancelled()) co_return Cancelled("the caller gave up");
    if (call.loop()->draining()) co_return Unavailable("this prefill worker shuts down");
    if (event || control_->Now() < job->last_event + options_.heartbeat) continue;
    const v1::PrefillEvent alive = ProgressOf(0);
    const bool written = co_await WriteEvent(job, alive, writer);
    if (!written) co_return Cancelled("the caller has gone");
  }
}

void PrefillService::LeaveKvLine(Job* job) {
  std::erase(kv_line_, job);
  if (!kv_line_.empty()) kv_line_.front()->events.Push({.kind = JobEvent::Kind::kTurn});
}

void PrefillService::StartJob(rpc::ServerCall& call, const v1::PrefillRequest& request, SequenceState state,
                              SequenceKv kv, Job* job) {
  const auto emitted = static_cast<int64_t>(state.emitted.size());
  // A sequence that its first token ends in any case has no KV to hand over.
  std::optional<PushTarget> target;
  if (emitted + 1 < state.params.max_tokens) {
    target = {request.lease().id(), request.lease().epoch(), request.attempt()};
    job->push = MakePush(job->id, request.decode_address(), request.lease().id());
    call.tasks().Spawn(KvPush::Run(job->push, &call.scope()), "KV push");
  }
  const auto report = [this, id = job->id](JobEvent event) {
    control_->Post([this, id, event = std::move(event)]() mutable { OnStepEvent(id, std::move(event)); });
  };
  auto encoder =
      std::make_shared<KvEncoder>(target, job->context_tokens, emitted, report,
                                  KvEncoder::Windows{options_.push.window_bytes, options_.unread_row_bytes});
  step_->Submit({job->id, std::move(state), std::move(kv), request.max_chunk_tokens(), nullptr},
                std::move(encoder));
}

// From submission to the verdict. Returns what the call ends with.
rpc::Task<Status> PrefillService::FollowJob(rpc::ServerCall& call, Job* job, Writer& writer) {
  for (;;) {
    std::optional<JobEvent> event = co_await job->events.PopUntil(job->last_event + options_.heartbeat);
    if (call.is_cancelled()) co_return Cancelled("the caller gave up");
    if (call.loop()->draining()) co_return Unavailable("this prefill worker shuts down");
    bool written = false;
    if (!event || event->kind == JobEvent::Kind::kTurn) {  // or one that it did not wait for any more
      const v1::PrefillEvent alive = ProgressOf(job->done_tokens);
      written = co_await WriteEvent(job, alive, writer);
    } else if (event->kind == JobEvent::Kind::kChunk) {
      written = co_await WriteChunk(job, *event, writer);
    } else if (event->kind == JobEvent::Kind::kPromptLogprobs) {
      written = co_await WriteLogprobs(job, *event, writer);
    } else if (event->kind == JobEvent::Kind::kFirstToken) {
      metrics_->first_token_seconds.Observe(Seconds(control_->Now() - job->arrival));
      const v1::PrefillEvent first = FirstTokenOf(*event);
      written = co_await WriteEvent(job, first, writer);
      if (written && event->finish != FinishReason::kNone) co_return OkStatus();
    } else if (event->kind == JobEvent::Kind::kPushed && event->error.ok()) {
      job->committed = true;
      const v1::PrefillEvent committed = CommittedOf(job->context_tokens, job->push->sent_bytes());
      written = co_await WriteEvent(job, committed, writer);
      if (written) co_return OkStatus();
    } else if (event->kind != JobEvent::Kind::kGone) {
      if (IsOutage(*event)) {
        v1::PrefillEvent away;
        away.mutable_experts_away();
        written = co_await WriteEvent(job, away, writer);
        if (!written) co_return Cancelled("the caller has gone");
      }
      co_return JobError(event->error);
    }
    if (!written) co_return Cancelled("the caller has gone");
    if (event && event->row_bytes > 0) TakeRows(job, event->row_bytes);
  }
}

rpc::Task<bool> PrefillService::WriteChunk(Job* job, const JobEvent& event, Writer& writer) {
  if (!event.logits.empty()) {
    v1::PrefillEvent message;
    message.mutable_logits()->set_first_row(event.first);
    message.mutable_logits()->set_rows(event.count);
    message.mutable_logits()->set_values(event.logits.data(), event.logits.size() * sizeof(float));
    const bool written = co_await WriteEvent(job, message, writer);
    if (!written) co_return false;
  }
  const v1::PrefillEvent progress = ProgressOf(event.first + event.count);
  const bool written = co_await WriteEvent(job, progress, writer);
  co_return written;
}

rpc::Task<bool> PrefillService::WriteLogprobs(Job* job, const JobEvent& event, Writer& writer) {
  v1::PrefillEvent message;
  message.mutable_prompt_logprobs()->set_first(event.first);
  for (const TokenLogprobs& entry : event.logprobs)
    *message.mutable_prompt_logprobs()->add_entries() = ToProto(entry);
  const bool written = co_await WriteEvent(job, message, writer);
  co_return written;
}

rpc::Task<bool> PrefillService::WriteEvent(Job* job, const v1::PrefillEvent& event, Writer& writer) {
  job->writer_dog.Expect("read an event",
                         phase_.load() == Phase::kDraining ? options_.drain_write : options_.write);
  const bool written = co_await writer.Write(event);
  job->writer_dog.Rest();
  job->last_event = control_->Now();
  co_return written;
}

/// Events with so many bytes of rows are the caller's now.
void PrefillService::TakeRows(Job* job, int64_t bytes) {
  job->unread_row_bytes -= bytes;
  metrics_->unread_row_bytes.Add(-static_cast<double>(bytes));
  if (job->queued) step_->ReleaseRows(job->id, bytes);
}

void PrefillService::Drain() {
  phase_.store(Phase::kDraining);
  control_->Post([this] {
    for (const auto& [id, job] : jobs_) job->writer_dog.Hurry(options_.drain_write);
  });
}

void PrefillService::EndJob(Job* job, const Status& status) {
  if (!status.ok()) step_->Cancel(job->id);
  LeaveQueue(job);
  job->writer_dog.Stop();
  if (job->push) {
    // After an OK verdict the stream is ending by itself; in every other case nobody waits for it.
    if (!job->committed) job->push->Cancel();
    // A connection whose peer has vanished without a word looks alive for many minutes: the next push makes another.
    if (job->push->silent()) channels_.erase(job->push->address());
    metrics_->pushed_bytes.Add(static_cast<double>(job->push->sent_bytes()));
  }
  metrics_->unread_row_bytes.Add(-static_cast<double>(job->unread_row_bytes));
  jobs_.erase(job->id);
  AddOpenCalls(-1);
  std::string what = job->name + " prefill of " + std::to_string(job->context_tokens) + " tokens";
  const std::string after = " after " + SecondsText(control_->Now() - job->arrival);
  if (status.ok()) return LogInfo(what + " done" + after);
  metrics_->failed_requests.Add();
  what += " ended" + after + ", " + std::to_string(job->done_tokens) + " computed: ";
  if (job->writer_dog.barked()) what += "the caller did not " + job->writer_dog.missed() + ": ";
  LogWarning(what + status.ToString());
}

void PrefillService::AddOpenCalls(int change) {
  std::lock_guard lock(mutex_);
  open_calls_ += change;
  if (open_calls_ == 0) idle_.notify_all();
}

bool PrefillService::WaitIdle(TimePoint deadline) {
  std::unique_lock lock(mutex_);
  return idle_.wait_until(lock, deadline, [this] { return open_calls_ == 0; });
}

void PrefillService::OnStepEvent(uint64_t id, JobEvent event) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) return;
  Job* job = found->second;
  // The push takes frames at once, however slowly the caller reads its events.
  if (event.kind == JobEvent::Kind::kFrames) return job->push->Add(std::move(event.frames));
  if (event.kind == JobEvent::Kind::kChunk) {
    job->done_tokens = event.first + event.count;
  } else if (event.kind != JobEvent::Kind::kPromptLogprobs) {
    LeaveQueue(job);
  }
  if (event.row_bytes > 0) {
    job->unread_row_bytes += event.row_bytes;
    metrics_->unread_row_bytes.Add(static_cast<double>(event.row_bytes));
  }
  job->events.Push(std::move(event));
}

void PrefillService::LeaveQueue(Job* job) {
  if (!std::exchange(job->queued, false)) return;
  metrics_->queue_length.Set(--queued_);
}

std::shared_ptr<KvPush> PrefillService::MakePush(uint64_t id, const std::string& address, uint64_t lease) {
  const auto settled = [this, id](Status verdict) {
    const auto found = jobs_.find(id);
    if (found != jobs_.end())
      found->second->events.Push({.kind = JobEvent::Kind::kPushed, .error = std::move(verdict)});
  };
  return std::make_shared<KvPush>(
      control_, ChannelTo(address), address, lease, options_.push,
      [this, id](int64_t bytes) { OnSent(id, bytes); }, settled);
}

void PrefillService::OnSent(uint64_t id, int64_t bytes) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) return;
  // Not for every frame: each could wake the step thread.
  int64_t& unreleased = found->second->unreleased_bytes;
  unreleased += bytes;
  if (unreleased >= options_.push.window_bytes / 8) step_->Release(id, std::exchange(unreleased, 0));
}

std::shared_ptr<grpc::Channel> PrefillService::ChannelTo(const std::string& address) {
  std::shared_ptr<grpc::Channel>& channel = channels_[address];
  if (!channel) channel = rpc::CreateChannel(address);
  std::shared_ptr<grpc::Channel> found = channel;
  // Decode workers come and go with new addresses: drop one that nobody uses.
  if (channels_.size() > kMaxChannels) {
    const auto idle = std::find_if(channels_.begin(), channels_.end(),
                                   [](const auto& entry) { return entry.second.use_count() == 1; });
    if (idle != channels_.end()) channels_.erase(idle);
  }
  return found;
}

}  // namespace cachalot

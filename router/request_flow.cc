#include "router/request_flow.h"

#include <algorithm>
#include <set>

#include "common/base/log.h"
#include "common/rpc/error_map.h"

namespace cachalot {
namespace {

using Kind = FlowEvent::Kind;

constexpr Duration kLookAround = std::chrono::milliseconds(20);

/// One request's way through its workers. Lives in RunRequest's frame.
class Request {
 public:
  Request(FlowContext* context, SequenceState state, FlowSink* sink, PrefillOptions options, TimePoint deadline)
      : context_(context), state_(std::move(state)), sink_(sink), options_(options), deadline_(deadline),
        queue_(std::make_shared<FlowQueue>(context->loop)),
        next_index_(static_cast<int64_t>(state_.emitted.size())) {}

  FlowQueue& queue() { return *queue_; }

  rpc::Task<StatusOr<FlowResult>> Run() {
    for (int pair = 1;; ++pair) {
      const Status status = co_await RunPair();
      if (status.ok()) co_return FlowResult{finish_, next_index_};
      // Another pair can go on only if this one died under the request; debugging runs are not resumed.
      const bool again = pair < context_->options.max_pairs && rpc::IsRetryable(status) && !lost_client_ &&
                         !state_.want_logits && context_->loop->Now() < deadline_;
      if (!again) co_return status;
      LogWarning(Tag() + "attempt on another pair of workers: " + StatusMessage(status));
      if (granted_) ++context_->counters.decode_failovers;
    }
  }

 private:
  std::string Tag() const { return "[" + state_.request_id + "] "; }

  /// Steps 3 to 9 on one decode worker. OK: finished.
  rpc::Task<Status> RunPair() {
    const auto prompt_tokens = static_cast<int64_t>(state_.prompt.size() + state_.emitted.size());
    // 3. A decode worker with the least work.
    auto decode = co_await Choose(*context_->decode, tried_decode_, state_.MaxTokens());
    CO_RETURN_IF_ERROR(decode.status());
    tried_decode_.insert(decode->worker);
    const WorkerPool<DecodeWorker>::Assignment held(context_->decode, decode->worker, 1);

    // 4. It reserves the KV for all that may come and grants a lease.
    granted_ = decode_running_ = false;
    Drain();
    lease_ = context_->decode->worker(decode->worker).Open(state_, queue_);
    Status status = co_await AwaitGrant();
    std::set<size_t> tried_prefill;
    for (attempt_ = 1; status.ok() && finish_ == FinishReason::kNone; ++attempt_) {
      // 5. A prefill worker fills the lease; a failure is tried elsewhere, the reservation stays.
      auto prefill = co_await Choose(*context_->prefill, tried_prefill, prompt_tokens);
      if (!prefill.ok()) {
        status = prefill.status();
        break;
      }
      tried_prefill.insert(prefill->worker);
      const WorkerPool<PrefillWorker>::Assignment filling(context_->prefill, prefill->worker, prompt_tokens);
      PrefillOptions options = options_;
      options.attempt = attempt_;
      LogDebug(Tag() + "prefill attempt " + std::to_string(attempt_) + " on " + prefill->reason + ", decode on " +
               decode->reason);
      prefill_ = context_->prefill->worker(prefill->worker).Start(state_, *lease_, options, queue_);
      prefill_failed_ = false;
      status = co_await Follow();  // 6.-8.
      prefill_.reset();
      if (!prefill_failed_) break;
      LogWarning(Tag() + "prefill attempt " + std::to_string(attempt_) + " failed: " + StatusMessage(status));
      if (!rpc::IsRetryable(status) && status.code() != StatusCode::kDeadlineExceeded) break;
      if (static_cast<int>(attempt_) >= context_->options.max_prefill_attempts) break;
      ++context_->counters.prefill_retries;
      status = OkStatus();
    }
    // 9. Finish, cancel, deadline and error all release the lease at once.
    lease_.reset();
    co_return status;
  }

  /// A usable worker, or after placement_wait why there is none.
  template <typename Pool>
  rpc::Task<StatusOr<Placement>> Choose(Pool& pool, const std::set<size_t>& tried, int64_t kv_tokens) {
    const TimePoint end = std::min(deadline_, context_->loop->Now() + context_->options.placement_wait);
    for (;;) {
      StatusOr<Placement> placement = pool.Choose(tried, kv_tokens);
      if (placement.ok() || context_->loop->Now() >= end) co_return placement;
      // Workers that come back are seen within one look; a cancelled client ends the wait.
      const auto event = co_await queue_->PopUntil(std::min(end, context_->loop->Now() + kLookAround));
      if (event && event->kind == Kind::kCancelled) co_return Gone();
      if (event && event->kind == Kind::kDecodeFailed) co_return event->error;
      if (context_->loop->stopping()) co_return Unavailable("the router is shutting down");
    }
  }

  Status Gone() {
    lost_client_ = true;
    return Cancelled("the client went away");
  }

  /// What is still queued belongs to an earlier pair.
  void Drain() {
    while (auto event = queue_->TryPop())
      if (event->kind == Kind::kCancelled) lost_client_ = true;
  }

  rpc::Task<Status> AwaitGrant() {
    while (!lost_client_) {
      auto event = co_await queue_->PopUntil(deadline_);
      if (!event) co_return Expired("a lease");
      if (event->kind == Kind::kCancelled) break;
      if (event->kind == Kind::kDecodeFailed) co_return event->error;
      if (event->kind != Kind::kGranted) continue;
      granted_ = true;
      if (!started_) {
        started_ = true;
        const bool there = co_await sink_->Started();
        if (!there) break;
      }
      co_return OkStatus();
    }
    co_return Gone();
  }

  Status Expired(const char* what) {
    lost_client_ = true;
    if (context_->loop->Now() >= deadline_)
      return DeadlineExceeded(std::string("the request's deadline passed while waiting for ") + what);
    return Unavailable("the router is shutting down");
  }

  /// Tokens to the client until the output ends or something fails.
  rpc::Task<Status> Follow() {
    std::vector<int32_t> tokens;
    while (finish_ == FinishReason::kNone) {
      auto event = co_await queue_->PopUntil(deadline_);
      if (!event) co_return Expired("the next token");
      // All that is there goes out as one message.
      for (; event; event = queue_->TryPop()) {
        const Status status = co_await Take(*event, tokens);
        CO_RETURN_IF_ERROR(status);
        if (finish_ != FinishReason::kNone) break;
      }
      if (tokens.empty()) continue;
      const bool there = co_await sink_->Tokens(std::move(tokens));
      if (!there) co_return Gone();
      tokens.clear();
      lease_->Acknowledge(next_index_);
    }
    co_return OkStatus();
  }

  rpc::Task<Status> Take(FlowEvent& event, std::vector<int32_t>& tokens) {
    switch (event.kind) {
      case Kind::kCancelled:
        co_return Gone();
      case Kind::kDecodeFailed:
        co_return event.error;
      case Kind::kPrefillFailed:
        // A prefill worker that dies behind its commit has done its work.
        if (event.attempt != attempt_ || decode_running_) co_return OkStatus();
        prefill_failed_ = true;
        co_return event.error;
      case Kind::kPromptLogits: {
        if (event.attempt != attempt_) co_return OkStatus();
        const bool there = co_await sink_->Logits(event.first_row, std::move(event.logits));
        co_return there ? OkStatus() : Gone();
      }
      case Kind::kFirstToken:
        if (event.attempt != attempt_) co_return OkStatus();
        [[fallthrough]];
      case Kind::kToken: {
        decode_running_ |= event.kind == Kind::kToken;
        // A later attempt samples tokens again that the client has; a token may never be skipped.
        if (event.index < next_index_) co_return OkStatus();
        if (event.index > next_index_)
          co_return Internal("output token " + std::to_string(event.index) + " came before token " +
                             std::to_string(next_index_));
        ++next_index_;
        tokens.push_back(event.token);
        state_.emitted.push_back(event.token);
        finish_ = event.finish;
        if (!event.logits.empty()) {
          const int64_t row = static_cast<int64_t>(state_.prompt.size()) + event.index - 1;
          const bool there = co_await sink_->Logits(row, std::move(event.logits));
          if (!there) co_return Gone();
        }
        co_return OkStatus();
      }
      case Kind::kCommitted:
        decode_running_ |= event.attempt == attempt_;
        break;
      case Kind::kGranted:
        break;
    }
    co_return OkStatus();
  }

  FlowContext* context_;
  SequenceState state_;  // emitted grows with what the client has
  FlowSink* sink_;
  const PrefillOptions options_;
  const TimePoint deadline_;
  std::shared_ptr<FlowQueue> queue_;
  std::unique_ptr<DecodeCall> lease_;
  std::unique_ptr<PrefillCall> prefill_;
  std::set<size_t> tried_decode_;
  int64_t next_index_;
  uint32_t attempt_ = 0;
  FinishReason finish_ = FinishReason::kNone;
  bool granted_ = false, started_ = false, decode_running_ = false, prefill_failed_ = false, lost_client_ = false;
};

}  // namespace

rpc::Task<StatusOr<FlowResult>> RunRequest(FlowContext* context, SequenceState state, FlowSink* sink,
                                           PrefillOptions options, rpc::CancelScope* cancel, TimePoint deadline) {
  Request request(context, std::move(state), sink, options, deadline);
  rpc::CancelCallback on_cancel(cancel, [&request] {
    FlowEvent event;
    event.kind = Kind::kCancelled;
    request.queue().Push(std::move(event));
  });
  StatusOr<FlowResult> result = co_await request.Run();
  co_return result;
}

}  // namespace cachalot

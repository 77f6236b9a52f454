#include "router/request_flow.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <set>
#include <utility>

#include "common/base/log.h"
#include "common/base/seconds_text.h"
#include "common/rpc/error_map.h"
#include "router/output_order.h"
#include "router/resume_pace.h"
#include "router/retry_budget.h"
#include "router/watched_write.h"

namespace cachalot {
namespace {

using Kind = FlowEvent::Kind;

// Prefill workers that wait for a shard, each for its whole grace, before the shard itself counts as away.
constexpr int kMaxExpertsAway = 2;
constexpr Duration kLookAround = std::chrono::milliseconds(20);

/// A worker's error as the request's own. A time-out, a cancellation or damaged KV on the workers' side is no
/// deadline and no cancellation of this request's: another attempt may do better.
Status WorkerError(const Status& error) {
  switch (error.code()) {
    case StatusCode::kOk:
      return Internal("a worker failed without saying why");
    case StatusCode::kDeadlineExceeded:
    case StatusCode::kCancelled:
    case StatusCode::kDataLoss:
      return Unavailable(StatusMessage(error));
    default:
      return error;
  }
}

/// One request's way through its workers. Lives in RunRequest's frame.
class Request {
 public:
  Request(FlowContext* context, SequenceState state, FlowSink* sink, PrefillOptions options,
          TimePoint deadline, Siblings* siblings)
      : context_(context),
        state_(std::move(state)),
        sink_(sink),
        options_(options),
        deadline_(deadline),
        siblings_(siblings),
        generation_(context->generation),
        queue_(std::make_shared<FlowQueue>(context->loop)),
        pairs_(context->options.max_pairs, context->options.resume_wait),
        output_(state_),
        pace_(context->options.resume_patience, context->options.prefill_patience) {
    ++context_->running;
  }
  ~Request() { --context_->running; }
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  FlowQueue& queue() { return *queue_; }

  rpc::Task<StatusOr<FlowResult>> Run() {
    for (;;) {
      const Status status = co_await RunPair();
      if (status.ok()) co_return FlowResult{output_.finish(), output_.next_index(), cached_.value_or(0)};
      if (GoesToTheLine(status) || TooLargeForThis(status)) continue;
      if (!AnotherPair(status)) co_return status;
      LogWarning(Tag() + "attempt on another pair of workers: " + StatusMessage(status));
      if (granted_) {
        ++context_->counters.decode_failovers;
        if (context_->decode_failovers) context_->decode_failovers->Add();
      } else {
        ++context_->counters.lease_retries;
        if (context_->lease_retries) context_->lease_retries->Add();
        if (status.code() == StatusCode::kResourceExhausted) refusal_ = status;
      }
    }
  }

 private:
  std::string Tag() const { return "[" + state_.request_id + "] "; }
  bool Accepted() const { return resumed_ || started_; }  // as the client has seen
  KvNeed Need() const { return {state_.ContextTokens(), state_.MaxTokens()}; }

  /// Another pair can go on only if this one died under the request; debugging runs are not resumed.
  bool AnotherPair(const Status& status) {
    const TimePoint now = context_->loop->Now();
    if (over_ || state_.want_logits || !rpc::IsRetryable(status) || now >= deadline_) return false;
    // What a client has seen accepted outlives the only worker's restart.
    const bool nobody = resumed_ && !granted_ && status.code() == StatusCode::kUnavailable;
    const bool again = pairs_.Failed(now, nobody);
    pace_.NotBefore(std::max(now + kLookAround, pairs_.not_before()));  // if it is in the line: not at once
    return again;
  }

  /// A request that the client has seen accepted does not end for want of KV or of a place in a queue: it
  /// waits. True when the line is where it goes on.
  bool GoesToTheLine(const Status& status) {
    if (over_ || state_.want_logits || !rpc::IsRetryable(status)) return false;
    const TimePoint now = context_->loop->Now();
    if (preempted_) {
      ++context_->counters.preemptions;
      if (context_->preemptions) context_->preemptions->Add();
      LogInfo(Tag() + StatusMessage(status));
      pace_.Preempted(now);
    } else if (Accepted() && status.code() == StatusCode::kResourceExhausted) {
      if (!granted_) pace_.Refused(now);
      over_ = granted_ && !pace_.RefusedByPrefill(now, output_.next_index());
      if (over_) return false;
    } else {
      return false;
    }
    pairs_.Met();
    if (!place_) {
      place_.emplace(&context_->line);
      pace_.JoinsLine(now);
    }
    tried_decode_ = too_small_;
    refusal_ = too_small_refusal_;
    siblings_ = nullptr;  // their contexts differ by now
    return true;
  }

  /// A decode worker that could never hold the request; another may be larger. Each is asked once.
  bool TooLargeForThis(const Status& status) {
    if (over_ || granted_ || status.code() != StatusCode::kOutOfRange) return false;
    too_small_.insert(decode_worker_);
    too_small_refusal_ = status;
    if (refusal_.ok()) refusal_ = status;
    return true;
  }

  /// Steps 3 to 9 on one decode worker. OK: finished.
  rpc::Task<Status> RunPair() {
    ForgetEvents();
    if (cancelled_) co_return Gone();
    granted_ = decode_running_ = preempted_ = gave_back_ = false;
    resumed_ = started_ || output_.next_index() > 0;  // here or at another router
    output_.NewPair();
    // For as long as the lease lives, this is what its workers know of the output: the decode worker takes
    // only KV that continues the sequence as it was opened.
    state_.emitted = output_.tokens();
    if (output_.has_prompt_logprobs()) state_.params.prompt_logprobs = kNoLogprobs;

    // 3. A decode worker with the least work.
    CO_RETURN_IF_ERROR(OthersFirst());
    StatusOr<Placement> decode = Placement();
    if (place_) {
      decode = co_await AwaitRoom();
    } else {
      const TimePoint now = context_->loop->Now();
      const TimePoint end = resumed_ ? pairs_.end(now) : now + context_->options.placement_wait;
      decode = co_await Choose(*context_->decode, tried_decode_, Need(), end, pairs_.not_before());
    }
    CO_RETURN_IF_ERROR(decode.status());
    CO_RETURN_IF_ERROR(SameModel());
    if (too_small_.contains(decode->worker)) {  // all have been tried: rather one again that is not
      decode = context_->decode->Choose(too_small_, Need());
      CO_RETURN_IF_ERROR(decode.status());
    }
    decode_worker_ = decode->worker;
    const bool only_small = tried_decode_ == too_small_;
    const bool tried = !tried_decode_.insert(decode->worker).second;
    if (tried && !refusal_.ok()) {
      if (!resumed_ || only_small) co_return Refused(refusal_);
      // Output that began on a larger worker does not end because a small one cannot hold it.
      if (too_small_.contains(decode->worker))
        co_return Unavailable("the decode workers that are left are too small: " + StatusMessage(refusal_));
    }
    const WorkerPool<DecodeWorker>::Assignment held(context_->decode, decode->worker, 1);

    // 4. It reserves the KV for what comes first and grants a lease.
    lease_ = context_->decode->worker(decode->worker).Open(state_, queue_);
    Status status = co_await AwaitGrant(decode->worker);
    if (status.ok()) status = co_await Generate(decode->reason);  // 5.-8.
    // 9. Finish, cancel, deadline and error all release the lease at once.
    lease_.reset();
    co_return status;
  }

  /// Steps 5 to 8: a prefill worker fills the lease; a failure is tried elsewhere, the reservation stays.
  rpc::Task<Status> Generate(std::string decode_reason) {
    const int64_t prompt_tokens = state_.ContextTokens();
    std::set<size_t> tried_prefill;
    Status refusal;
    int aborted = 0;
    // One worker is chosen without looking for prefixes.
    if (context_->prefill->size() > 1) prefix_ = PrefixLocality::PrefixOf(state_.Context());
    RetryBudget attempts(context_->options.max_prefill_attempts, context_->options.resume_wait);
    for (attempt_ = 1;; ++attempt_) {
      StatusOr<Placement> prefill = BesideSiblings(tried_prefill);
      const bool beside = prefill.ok();
      const CachedTokens cached = LikelyCached();
      if (!beside)
        prefill = co_await Choose(*context_->prefill, tried_prefill, {prompt_tokens, prompt_tokens},
                                  attempts.end(context_->loop->Now()), attempts.not_before(), &cached);
      if (decode_running_) {  // the attempt before had committed after all: nothing is left to prefill
        if (output_.first_token_missing()) co_return LostFirstToken();
        Status status = co_await Follow();
        co_return status;
      }
      CO_RETURN_IF_ERROR(prefill.status());
      CO_RETURN_IF_ERROR(SameModel());
      const bool tried = !tried_prefill.insert(prefill->worker).second;
      if (tried && !refusal.ok()) co_return Refused(refusal);
      LogDebug(Tag() + "prefill attempt " + std::to_string(attempt_) + " on " + prefill->reason +
               ", decode on " + decode_reason);
      if (siblings_) siblings_->prefill_worker = prefill->worker;
      filling_ = {context_->prefill, prefill->worker, beside ? 0 : prompt_tokens - prefill->cached};
      holder_ = {prefill->worker, context_->prefill->worker(prefill->worker).life()};
      PrefillOptions options = options_;
      options.attempt = attempt_;
      prefill_failed_ = false;
      prefill_ = context_->prefill->worker(prefill->worker).Start(state_, *lease_, options, queue_);
      Status status = co_await Follow();
      prefill_.reset();
      filling_ = {};
      if (!prefill_failed_) co_return status;
      LogWarning(Tag() + "prefill attempt " + std::to_string(attempt_) + " failed: " + StatusMessage(status));
      // ABORTED twice: no prefill worker fills this lease, another pair may do better. Rows of logits that went
      // out cannot be taken back.
      aborted += status.code() == StatusCode::kAborted;
      over_ |= experts_away_ >= kMaxExpertsAway;
      const bool too_large = status.code() == StatusCode::kOutOfRange;  // another prefill worker may be larger
      const bool again = (rpc::IsRetryable(status) || too_large) && aborted < 2 && !over_ && !state_.want_logits;
      const bool nobody = prefill_untaken_ && status.code() == StatusCode::kUnavailable;
      if (!again || !attempts.Failed(context_->loop->Now(), nobody)) co_return status;
      // A full one could hold it: one that is too small does not speak for it.
      const bool full = refusal.code() == StatusCode::kResourceExhausted;
      if (status.code() == StatusCode::kResourceExhausted || (too_large && !full)) refusal = status;
      ++context_->counters.prefill_retries;
      if (context_->prefill_retries) context_->prefill_retries->Add();
    }
  }

  /// A usable worker, one of `tried` not before `again`; at `end` why there is none. Ends early when it turns
  /// out that the decode worker runs.
  template <typename Pool>
  rpc::Task<StatusOr<Placement>> Choose(Pool& pool, const std::set<size_t>& tried, KvNeed need, TimePoint end,
                                        TimePoint again, const CachedTokens* cached = nullptr) {
    end = std::min(deadline_, end);
    for (;;) {
      StatusOr<Placement> placement = pool.Choose(tried, need, cached);
      const TimePoint now = context_->loop->Now();
      const bool early = placement.ok() && now < std::min(again, deadline_) && tried.contains(placement->worker);
      if ((placement.ok() && !early) || decode_running_) co_return placement;
      if (now >= end && !early) {
        over_ = true;
        if (now < deadline_) co_return placement;
        co_return DeadlineExceeded("the request's deadline passed while waiting for a worker: " +
                                   StatusMessage(placement.status()));
      }
      if (context_->loop->stopping()) {
        over_ = true;
        co_return Unavailable("the router is shutting down");
      }
      // Workers that come back are seen within one look; a cancelled client ends the wait.
      auto event = co_await queue_->PopUntil(std::min(early ? again : end, now + kLookAround));
      if (!event) continue;
      if (event->kind == Kind::kCancelled) co_return Gone();
      if (event->kind == Kind::kDecodeFailed) co_return WorkerError(event->error);
      preempted_ |= event->kind == Kind::kPreempted;
      if (event->kind == Kind::kToken || preempted_) decode_running_ = true;
      kept_.push_back(std::move(*event));
    }
  }

  /// RESOURCE_EXHAUSTED for a new request while others, which their clients have seen accepted, wait for room.
  Status OthersFirst() {
    const size_t waiting = context_->line.size();
    if (started_ || !state_.emitted.empty() || waiting == 0) return OkStatus();
    over_ = true;
    return ResourceExhausted(std::to_string(waiting) + " accepted requests wait for room at the workers; retry later");
  }

  /// A decode worker with KV for the request, once it is the first of the line. Its turn does not end before
  /// it has a lease.
  rpc::Task<StatusOr<Placement>> AwaitRoom() {
    TimePoint usable = context_->loop->Now();
    for (;;) {
      const TimePoint now = context_->loop->Now();
      if (now >= deadline_ || context_->loop->stopping())
        co_return Expired("KV of a decode worker, which others need as well");
      CO_RETURN_IF_ERROR(SameModel());
      StatusOr<Placement> placement = ChooseWithRoom(now);
      if (placement.ok()) co_return placement;
      if (placement.status().code() != StatusCode::kUnavailable) usable = now;
      if (now - usable >= context_->options.resume_wait) {
        over_ = true;
        co_return placement;
      }
      // The line may be long: only its first looks often.
      const Duration pause = place_->first() ? kLookAround : 5 * kLookAround;
      auto event = co_await queue_->PopUntil(std::min(deadline_, now + pause));
      if (event && event->kind == Kind::kCancelled) co_return Gone();
    }
  }

  /// RESOURCE_EXHAUSTED: not yet. UNAVAILABLE: no worker is usable.
  StatusOr<Placement> ChooseWithRoom(TimePoint now) {
    auto& pool = *context_->decode;
    ASSIGN_OR_RETURN(const Placement any, pool.Choose(tried_decode_, Need()));
    if (!place_->first()) return ResourceExhausted("not its turn");
    if (too_small_.contains(any.worker)) return any;  // no other is left: the caller refuses
    if (!pace_.MayAsk(now)) return ResourceExhausted("not again so soon");
    if (pace_.AsksAnyway(now)) return any;
    // Those that have not failed it first.
    for (std::set<size_t> excluded : {tried_decode_, too_small_}) {
      for (;;) {
        ASSIGN_OR_RETURN(const Placement next, pool.Choose(excluded, Need()));
        if (excluded.contains(next.worker)) break;
        const WorkerLoad load = pool.worker(next.worker).load();
        if (RoomToResume(load, Need().context, Need().at_most)) return next;
        excluded.insert(next.worker);
      }
    }
    return ResourceExhausted("no decode worker has room");
  }

  /// None of a request that wants rows of its prompt: it is computed in any case.
  CachedTokens LikelyCached() const {
    CachedTokens cached;
    if (state_.want_logits || state_.params.prompt_logprobs != kNoLogprobs) return cached;
    for (const auto& [holder, tokens] : context_->prefixes.Find(prefix_)) {
      const bool lives = context_->prefill->Usable(holder.worker).ok() &&
                         context_->prefill->worker(holder.worker).life() == holder.life;
      // The last token is computed in any case.
      if (lives) cached[holder.worker] = std::min(tokens, state_.ContextTokens() - 1);
    }
    return cached;
  }

  /// The prefill worker of the request's siblings, if it can be used and has not failed here.
  StatusOr<Placement> BesideSiblings(const std::set<size_t>& tried) {
    if (!siblings_ || !siblings_->prefill_worker || tried.contains(*siblings_->prefill_worker))
      return Unavailable("no sibling has a prefill worker");
    RETURN_IF_ERROR(context_->prefill->Usable(*siblings_->prefill_worker));
    PrefillWorker& worker = context_->prefill->worker(*siblings_->prefill_worker);
    return Placement{*siblings_->prefill_worker, worker.name() + " (beside its siblings)"};
  }

  /// Its prompt and its tokens are of the model that it began with.
  Status SameModel() {
    if (context_->generation == generation_) return OkStatus();
    over_ = true;
    return ChangedModel();
  }

  Status Gone() {
    over_ = true;
    return Cancelled("the client went away");
  }

  /// All workers have been asked and some are full: asking them again at once would only add to their load.
  Status Refused(const Status& refusal) {
    over_ = !Accepted() || refusal.code() != StatusCode::kResourceExhausted;
    return refusal;
  }

  Status Preempted() {
    return Aborted("preempted before output token " + std::to_string(output_.next_index()) +
                   ": others need its KV on the decode worker");
  }

  Status LostFirstToken() {
    if (preempted_) return Preempted();
    return Unavailable("the prefill worker was lost between its commit and its first token");
  }

  std::optional<FlowEvent> TryNext() {
    if (kept_.empty()) return queue_->TryPop();
    std::optional<FlowEvent> event(std::move(kept_.front()));
    kept_.pop_front();
    return event;
  }

  /// What is still queued belongs to an earlier pair, but for the client's cancellation.
  void ForgetEvents() {
    while (auto event = TryNext()) cancelled_ |= event->kind == Kind::kCancelled;
  }

  rpc::Task<Status> AwaitGrant(size_t worker) {
    const TimePoint end = std::min(deadline_, context_->loop->Now() + context_->options.lease_wait);
    for (;;) {
      auto event = co_await queue_->PopUntil(end);
      if (!event) {
        if (end == deadline_ || context_->loop->stopping()) co_return Expired("a lease");
        co_return Unavailable("decode worker " + context_->decode->worker(worker).name() +
                              " did not answer for " + SecondsText(context_->options.lease_wait) +
                              " when asked for a lease");
      }
      if (event->kind == Kind::kCancelled) co_return Gone();
      if (event->kind == Kind::kDecodeFailed) co_return WorkerError(event->error);
      if (event->kind == Kind::kPreempted) co_return Unavailable("preempted before its lease was granted");
      if (event->kind == Kind::kGranted) break;
    }
    granted_ = true;
    pairs_.Met();
    place_.reset();
    if (started_) co_return OkStatus();
    started_ = true;
    const bool there = co_await sink_->Started();
    co_return there ? OkStatus() : Gone();
  }

  Status Expired(const char* what) {
    over_ = true;
    if (context_->loop->Now() >= deadline_)
      return DeadlineExceeded(std::string("the request's deadline passed while waiting for ") + what);
    return Unavailable("the router is shutting down");
  }

  /// Tokens to the client until the output ends or something fails. Workers that hang are noticed by their
  /// clients.
  rpc::Task<Status> Follow() {
    Status status;
    while (status.ok() && !output_.finished()) {
      std::optional<FlowEvent> event = TryNext();
      if (!event) event = co_await queue_->PopUntil(deadline_);
      if (!event) co_return Expired("the next token");
      // All that is there goes out as one message, whatever comes behind it.
      for (;;) {
        status = co_await Take(*event);
        if (!status.ok() || output_.finished()) break;
        event = TryNext();
        if (!event) break;
      }
      OutputOrder::Next next = output_.Take();
      if (next.tokens.empty() || over_) continue;
      const bool there = co_await Write(std::move(next));
      if (!there) co_return Gone();
      if (sink_->Complete()) {
        output_.Stop();
        prefill_failed_ = false;
        co_return OkStatus();
      }
      if (lease_) lease_->Acknowledge(output_.next_index());
    }
    co_return status;
  }

  /// False: the client is gone.
  rpc::Task<bool> Write(OutputOrder::Next next) {
    for (auto& [row, logits] : next.logits) {
      const bool there = co_await sink_->Logits(row, std::move(logits));
      if (!there) co_return false;
    }
    if (!next.logprobs.empty()) sink_->Logprobs(std::move(next.logprobs));
    const bool there = co_await sink_->Tokens(std::move(next.tokens));
    co_return there;
  }

  rpc::Task<Status> Take(FlowEvent& event) {
    switch (event.kind) {
      case Kind::kCancelled:
        co_return Gone();
      case Kind::kDecodeFailed:
        co_return WorkerError(event.error);
      case Kind::kPreempted:
        // What it has produced came before. The first token may still be on its way on the other connection:
        // it is worth the wait, so that no round passes without one.
        DecodeRuns();
        preempted_ = true;
        co_return output_.first_token_missing() ? OkStatus() : Preempted();
      case Kind::kPrefillFailed:
        if (event.attempt != attempt_) break;
        // A prefill worker that dies behind its commit has done its work.
        if (decode_running_ && !output_.first_token_missing()) break;
        if (decode_running_) co_return LostFirstToken();
        prefill_failed_ = true;
        prefill_untaken_ = event.untaken;
        experts_away_ += event.experts_away;
        co_return WorkerError(event.error);
      case Kind::kPromptLogits: {
        if (event.attempt != attempt_) break;
        Status status = co_await WriteRows(sink_->Logits(event.first_row, std::move(event.logits)));
        co_return status;
      }
      case Kind::kPromptLogprobs: {
        if (event.attempt != attempt_) break;
        Status status = co_await EmitPromptLogprobs(event);
        co_return status;
      }
      case Kind::kFirstToken: {
        if (event.attempt != attempt_) break;
        if (!cached_) cached_ = event.cached;
        context_->prefixes.Remember(std::exchange(prefix_, {}), holder_);
        Status status = output_.First(event);
        if (status.ok() && preempted_ && !output_.finished()) status = Preempted();
        co_return status;
      }
      case Kind::kToken:
        DecodeRuns();
        co_return output_.Token(event);
      case Kind::kCommitted:
        if (event.attempt == attempt_) DecodeRuns();
        break;
      case Kind::kGranted:
        break;
    }
    co_return OkStatus();
  }

  /// The prefill is over, whatever its worker still says of it.
  void DecodeRuns() {
    decode_running_ = true;
    experts_away_ = 0;
    filling_ = {};
  }

  /// Those that the client has not got from an earlier attempt.
  rpc::Task<Status> EmitPromptLogprobs(FlowEvent& event) {
    auto missing = output_.PromptLogprobs(event.first_row, std::move(event.logprobs));
    CO_RETURN_IF_ERROR(missing.status());
    auto& [first, entries] = *missing;
    if (entries.empty()) co_return OkStatus();
    Status status = co_await WriteRows(sink_->PromptLogprobs(first, std::move(entries)));
    co_return status;
  }

  rpc::Task<Status> WriteRows(rpc::Task<bool> write) {
    const bool there = co_await WatchedWrite(context_->loop, std::move(write), context_->options.reader_patience,
                                             [this] { return GiveBack(); });
    if (!there) co_return Gone();
    if (!gave_back_) co_return OkStatus();
    preempted_ = true;  // by us: a decode worker preempts only what runs
    co_return Aborted("the client took none of the prompt's rows for " +
                      SecondsText(context_->options.reader_patience) +
                      " while others waited for KV of its workers");
  }

  /// A client that does not read must not keep KV from those who would run, nor rows in our memory.
  bool GiveBack() {
    if (!prefill_ || !prefill_->waits_for_reader()) return false;
    const bool wanted = context_->line.size() > 0 || context_->decode->worker(decode_worker_).load().kv_wanted ||
                        context_->prefill->worker(holder_.worker).load().kv_wanted;
    if (!wanted) return false;
    prefill_.reset();
    filling_ = {};
    lease_.reset();
    ForgetEvents();
    return gave_back_ = true;
  }

  FlowContext* context_;
  SequenceState state_;  // as this pair's workers were given it
  FlowSink* sink_;
  const PrefillOptions options_;
  const TimePoint deadline_;
  Siblings* siblings_;
  const uint64_t generation_;
  std::shared_ptr<FlowQueue> queue_;
  RetryBudget pairs_;
  std::deque<FlowEvent> kept_;  // taken from the queue before their turn
  std::unique_ptr<DecodeCall> lease_;
  std::unique_ptr<PrefillCall> prefill_;
  WorkerPool<PrefillWorker>::Assignment filling_;
  PrefixLocality::Prefix prefix_;  // of the context, until it is computed
  PrefixHolder holder_;            // who computes it
  std::set<size_t> tried_decode_, too_small_;
  size_t decode_worker_ = 0;     // of this pair
  Status refusal_;               // RESOURCE_EXHAUSTED of a decode worker, or else OUT_OF_RANGE
  Status too_small_refusal_;     // OUT_OF_RANGE of one
  OutputOrder output_;
  std::optional<int64_t> cached_;  // of the first prefill that chose a token
  uint32_t attempt_ = 0;
  bool granted_ = false, started_ = false, decode_running_ = false, prefill_failed_ = false;
  bool prefill_untaken_ = false;  // the one that failed: no worker had begun it
  bool preempted_ = false;  // on this pair
  bool gave_back_ = false;  // on this pair: its client does not read
  bool cancelled_ = false;
  bool resumed_ = false;    // this pair continues what the client has seen accepted
  std::optional<ResumeLine::Place> place_;
  ResumePace pace_;  // in the line
  int experts_away_ = 0;  // prefill workers that waited for experts in vain, since a prefill went well
  bool over_ = false;  // nothing can help: the client is gone, the time is up, no worker is there
};

}  // namespace

rpc::Task<StatusOr<FlowResult>> RunRequest(FlowContext* context, SequenceState state, FlowSink* sink,
                                           PrefillOptions options, rpc::CancelScope* cancel,
                                           TimePoint deadline, Siblings* siblings) {
  if (context->running >= context->options.max_requests)
    co_return ResourceExhausted(std::to_string(context->running) +
                                " requests run at this router, which is all that it takes; retry later or raise --max-requests");
  Request request(context, std::move(state), sink, options, deadline, siblings);
  rpc::CancelCallback on_cancel(cancel, [&request] {
    FlowEvent event;
    event.kind = Kind::kCancelled;
    request.queue().Push(std::move(event));
  });
  StatusOr<FlowResult> result = co_await request.Run();
  co_return result;
}

}  // namespace cachalot

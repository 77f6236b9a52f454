#include "decode_worker/decode_flow.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/base/seconds_text.h"

namespace cachalot {
namespace {

constexpr int64_t kGrowTokens = 128;  // what a block of the pools that fill fastest holds

}  // namespace

Status CheckHolds(const BlockPools& pools, const SequenceState& state) {
  if (pools.CanHold(state.MaxTokens())) return OkStatus();
  return OutOfRange("the prompt has " + std::to_string(state.prompt.size()) + " tokens and max_tokens is " +
                    std::to_string(state.params.max_tokens) + ": together more than the KV of " +
                    std::to_string(pools.total_tokens()) + " tokens; lower max_tokens or raise --kv-tokens");
}

Status DecodeFlow::AskedExperts::Begin(const ExpertCall& call) {
  asked_ = clock_.Now();
  const Awaited awaited = at_call_ ? at_call_() : Awaited::kNothing;
  const bool long_enough = interruptible_ && taken_ >= step_limit_;
  if (awaited == Awaited::kStop || (awaited == Awaited::kRemove && long_enough)) {
    interrupted_ = true;
    return DeadlineExceeded("experts have taken " + SecondsText(taken_) + " of one step");
  }
  return experts_.Begin(call);
}

Status DecodeFlow::AskedExperts::Wait() {
  Status status = experts_.Wait();
  taken_ += clock_.Now() - asked_;
  return status;
}

DecodeFlow::DecodeFlow(Model& model, ExpertBackend& experts, const Clock& clock, DecodeOptions options,
                       AtCall at_call)
    : model_(model),
      experts_(experts, clock, options.step_limit, std::move(at_call)),
      clock_(clock),
      options_(options),
      sampler_(model.config().vocab_size) {}

void DecodeFlow::Join(uint64_t id, SequenceState state, SequenceKv kv, int32_t first_token,
                      bool preemptible) {
  CHECK(preemptible || kv.capacity() >= state.MaxTokens());
  const auto index = static_cast<int64_t>(state.emitted.size());
  TokenHistory history = HistoryOf(state, model_.config().vocab_size);
  history.Add(first_token);
  sequences_.push_back({id, std::move(state), std::move(kv), first_token, index + 1, index,
                        std::move(history), joined_++, preemptible});
}

void DecodeFlow::Remove(uint64_t id) {
  const auto found = std::ranges::find(sequences_, id, &Sequence::id);
  if (found != sequences_.end()) Erase(static_cast<size_t>(found - sequences_.begin()));
  if (sequences_.empty()) away_ = interrupted_ = false;  // who comes later has a grace of its own
}

/// The turn stays with whose it is.
void DecodeFlow::Erase(size_t at) {
  sequences_.erase(sequences_.begin() + static_cast<ptrdiff_t>(at));
  if (at < next_) --next_;
}

void DecodeFlow::Acknowledge(uint64_t id, int64_t next_index) {
  for (Sequence& s : sequences_)
    if (s.id == id) s.acknowledged = std::max(s.acknowledged, std::min(next_index, s.next_index));
}

/// Room for the next token. Up to the end of a block there is nothing to take.
bool DecodeFlow::Grow(Sequence& s) {
  const int64_t wanted = (s.kv.tokens() + kGrowTokens) / kGrowTokens * kGrowTokens;
  return HasRoom(s) || s.kv.Grow(std::min(wanted, s.state.MaxTokens()));
}

/// Lets every sequence that may run have room for its next token, the oldest first, at the cost of younger
/// ones.
void DecodeFlow::MakeRoom(std::vector<TokenOut>& out) {
  for (size_t i = 0; i < sequences_.size();) {
    if (Stalled(sequences_[i]) || Grow(sequences_[i])) {
      ++i;
      continue;
    }
    const std::optional<size_t> victim = Victim();
    if (!victim) {
      ++i;
      continue;
    }
    Preempt(*victim, out);
    if (*victim < i) --i;
  }
}

void DecodeFlow::Preempt(size_t at, std::vector<TokenOut>& out) {
  const Sequence& s = sequences_[at];
  out.push_back({s.id, s.next_index, 0, FinishReason::kNone, OkStatus(), {}, {}, true, Stalled(s)});
  Erase(at);
}

/// A reader that does not read must not keep KV from those who would run.
void DecodeFlow::GiveBack(std::vector<TokenOut>& out) {
  while (reclaim_ > 0) {
    const std::optional<size_t> victim = Victim();
    if (!victim || !Stalled(sequences_[*victim])) break;
    reclaim_ -= sequences_[*victim].kv.capacity();
    Preempt(*victim, out);
  }
  reclaim_ = 0;
}

std::optional<size_t> DecodeFlow::Victim() {
  views_.clear();
  for (const Sequence& s : sequences_) views_.push_back({s.order, Stalled(s), !s.preemptible});
  return ChooseVictim(views_);
}

DecodeFlow::Progress DecodeFlow::Step(std::vector<TokenOut>& out) {
  GiveBack(out);
  MakeRoom(out);
  segments_.clear();
  batch_.clear();
  bool no_room = false;
  const size_t count = sequences_.size();
  for (size_t i = 0; i < count && static_cast<int>(batch_.size()) < options_.max_batch; ++i) {
    const size_t at = (next_ + i) % count;
    Sequence& s = sequences_[at];
    if (Stalled(s)) continue;
    if (!HasRoom(s)) {
      no_room = true;
      continue;
    }
    batch_.push_back(at);
    segments_.push_back({&s.kv, {&s.token, 1}, false});
  }
  last_batch_ = batch_.size();
  starved_ = no_room;
  if (batch_.empty()) {
    away_ = interrupted_ = false;
    return no_room ? Progress::kNoRoom : Progress::kIdle;
  }
  const size_t from = std::exchange(next_, count > batch_.size() ? (batch_.back() + 1) % count : 0);

  // One that is done again runs to its end, however slow: nobody's cancels keep the others from their tokens.
  experts_.Restart(/*interruptible=*/!interrupted_);
  const auto logits = model_.Forward(segments_, experts_);
  if (!logits.ok() && experts_.interrupted()) {
    next_ = from;  // the same sequences: others may run only when these have their tokens
    interrupted_ = true;
    away_ = false;  // they answered all the time
    return Progress::kInterrupted;
  }
  if (!logits.ok()) return ExpertsAway(logits.status(), out);
  away_ = interrupted_ = false;

  std::vector<uint64_t> over;
  for (size_t i = 0; i < batch_.size(); ++i) {
    Sequence& s = sequences_[batch_[i]];
    TokenOut result{s.id, s.next_index, 0, FinishReason::kNone, OkStatus(), {}, {}, false, false};
    const auto row = logits->last(i);
    auto token = NextToken(s.state, model_.config().eos_token_ids, sampler_, s.history, row, s.next_index);
    if (token.ok()) {
      result.token = s.token = token->token;
      result.finish = token->finish;
      result.logprobs = std::move(token->logprobs);
      if (s.state.want_logits) result.logits.assign(row.begin(), row.end());
      ++s.next_index;
    } else {
      result.error = token.status();
    }
    if (!result.error.ok() || result.finish != FinishReason::kNone) over.push_back(s.id);
    out.push_back(std::move(result));
  }
  for (uint64_t id : over) Remove(id);
  return Progress::kStepped;
}

DecodeFlow::Progress DecodeFlow::ExpertsAway(const Status& status, std::vector<TokenOut>& out) {
  const bool transient =
      status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kDeadlineExceeded;
  if (!away_) away_since_ = experts_.asked();
  away_ = true;
  if (transient && clock_.Now() - away_since_ < options_.expert_outage_grace) return Progress::kExpertsAway;
  for (const Sequence& s : sequences_)
    out.push_back({s.id, s.next_index, 0, FinishReason::kNone, status, {}, {}, false, false});
  sequences_.clear();
  away_ = interrupted_ = false;
  return Progress::kStepped;
}

}  // namespace cachalot

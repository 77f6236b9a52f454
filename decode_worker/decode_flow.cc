#include "decode_worker/decode_flow.h"

#include <algorithm>

namespace cachalot {

DecodeFlow::DecodeFlow(Model& model, ExpertBackend& experts, const Clock& clock, DecodeOptions options)
    : model_(model), experts_(experts), clock_(clock), options_(options), sampler_(model.config().vocab_size) {}

void DecodeFlow::Join(uint64_t id, SequenceState state, SequenceKv kv, int32_t first_token) {
  const auto index = static_cast<int64_t>(state.emitted.size());
  TokenHistory history = HistoryOf(state, model_.config().vocab_size);
  history.Add(first_token);
  sequences_.push_back(
      {id, std::move(state), std::move(kv), first_token, index + 1, index, std::move(history)});
}

void DecodeFlow::Remove(uint64_t id) {
  std::erase_if(sequences_, [id](const Sequence& s) { return s.id == id; });
}

void DecodeFlow::Acknowledge(uint64_t id, int64_t next_index) {
  for (Sequence& s : sequences_)
    if (s.id == id) s.acknowledged = std::max(s.acknowledged, std::min(next_index, s.next_index));
}

DecodeFlow::Progress DecodeFlow::Step(std::vector<TokenOut>& out) {
  segments_.clear();
  batch_.clear();
  const size_t count = sequences_.size();
  for (size_t i = 0; i < count && static_cast<int>(batch_.size()) < options_.max_batch; ++i) {
    const size_t at = (next_ + i) % count;
    Sequence& s = sequences_[at];
    if (s.next_index - s.acknowledged > options_.window) continue;
    batch_.push_back(at);
    segments_.push_back({&s.kv, {&s.token, 1}, false});
  }
  last_batch_ = batch_.size();
  if (batch_.empty()) return Progress::kIdle;
  next_ = count > batch_.size() ? (batch_.back() + 1) % count : 0;

  const auto logits = model_.Forward(segments_, experts_);
  if (!logits.ok()) return ExpertsAway(logits.status(), out);
  away_ = false;

  std::vector<uint64_t> over;
  for (size_t i = 0; i < batch_.size(); ++i) {
    Sequence& s = sequences_[batch_[i]];
    TokenOut result{s.id, s.next_index, 0, FinishReason::kNone, OkStatus(), {}, {}};
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
  const TimePoint now = clock_.Now();
  if (!away_) away_since_ = now;
  away_ = true;
  if (transient && now - away_since_ < options_.expert_outage_grace) return Progress::kExpertsAway;
  for (const Sequence& s : sequences_)
    out.push_back({s.id, s.next_index, 0, FinishReason::kNone, status, {}, {}});
  sequences_.clear();
  away_ = false;
  return Progress::kStepped;
}

}  // namespace cachalot

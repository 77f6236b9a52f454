#include "prefill_worker/prefill_flow.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "common/base/check.h"
#include "common/kv/transfer_frame.h"
#include "prefill_worker/chunk_planner.h"

namespace cachalot {
namespace {

/// In memory, of an entry with `count` likeliest tokens.
int64_t LogprobsBytes(int count) {
  if (count == kNoLogprobs) return 0;
  return static_cast<int64_t>(sizeof(TokenLogprobs) + count * sizeof(TokenLogprob));
}

/// Whether a job needs the logits of all its tokens.
bool WantsRows(const SequenceState& state) {
  return state.want_logits || state.params.prompt_logprobs != kNoLogprobs;
}

}  // namespace

PrefillFlow::PrefillFlow(Model& model, ExpertBackend& experts, int64_t max_chunk_tokens,
                         PrefixStore* prefixes)
    : model_(model),
      experts_(experts),
      max_chunk_tokens_(max_chunk_tokens),
      prefixes_(prefixes),
      sampler_(model.config().vocab_size) {
  CHECK(max_chunk_tokens >= 1);
}

void PrefillFlow::Submit(PrefillJob request) {
  std::vector<int32_t> context = request.state.Context();
  CHECK(!context.empty());
  const bool needs_rows = WantsRows(request.state);
  const auto same =
      std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& job) { return job.context == context; });
  if (!needs_rows && same != jobs_.end()) return same->followers.push_back(std::move(request));
  jobs_.push_back({std::move(request), std::move(context)});
}

void PrefillFlow::Cancel(uint64_t id) {
  for (auto job = jobs_.begin(); job != jobs_.end(); ++job) {
    if (std::erase_if(job->followers, [id](const PrefillJob& follower) { return follower.id == id; }) > 0)
      return;
    if (job->request.id != id) continue;
    if (!job->followers.empty()) return TakeOver(*job);
    jobs_.erase(job);
    return;
  }
}

/// The first follower goes on where the job was; the others follow it.
void PrefillFlow::TakeOver(Job& job) {
  PrefillJob next = std::move(job.followers.front());
  job.followers.erase(job.followers.begin());
  HandDone(job, next);
  job.request = std::move(next);
}

/// What is computed of the job is `next`'s too.
void PrefillFlow::HandDone(const Job& job, PrefillJob& next) {
  if (job.done == 0) return;
  CopyHandOff(job.request.kv, job.done, &next.kv);
  if (job.cached > 0) next.sink->OnCached(job.cached);
  next.sink->OnChunk(next.kv, 0, job.done, {});
}

/// Of what a token brings to the sink of a job that wants rows; 0: it wants none.
int64_t PrefillFlow::RowBytes(const SequenceState& state) const {
  const int64_t logits = state.want_logits ? model_.config().vocab_size * int64_t{sizeof(float)} : 0;
  return logits + LogprobsBytes(state.params.prompt_logprobs);
}

/// 0: the job is held back.
int64_t PrefillFlow::RowsWanted(const Job& job) const {
  const int64_t row_bytes = RowBytes(job.request.state);
  return row_bytes > 0 ? job.request.sink->RowsWanted(row_bytes) : std::numeric_limits<int64_t>::max();
}

bool PrefillFlow::ready() const {
  return std::any_of(jobs_.begin(), jobs_.end(),
                     [this](const Job& job) { return !job.followers.empty() || RowsWanted(job) > 0; });
}

/// Followers of a job that is held back are a job of their own, in its place of the line.
void PrefillFlow::LeaveHeldLeaders() {
  for (size_t i = 0; i < jobs_.size(); ++i) {
    if (jobs_[i].followers.empty() || RowsWanted(jobs_[i]) > 0) continue;
    Job own{.request = std::move(jobs_[i].followers.front()), .context = jobs_[i].context};
    own.followers.assign(std::make_move_iterator(jobs_[i].followers.begin() + 1),
                         std::make_move_iterator(jobs_[i].followers.end()));
    jobs_[i].followers.clear();
    own.done = jobs_[i].done;
    own.begun = jobs_[i].begun;
    own.cached = jobs_[i].cached;
    own.cuts = jobs_[i].cuts;
    HandDone(jobs_[i], own.request);
    jobs_.insert(jobs_.begin() + static_cast<int64_t>(++i), std::move(own));
  }
}

int64_t PrefillFlow::waiting_tokens() const {
  int64_t tokens = 0;
  for (const Job& job : jobs_) tokens += static_cast<int64_t>(job.context.size()) - job.done;
  return tokens;
}

bool PrefillFlow::ChunkWanted(const std::function<bool(uint64_t id)>& gone) const {
  const auto stays = [&gone](const PrefillJob& request) { return !gone(request.id); };
  for (size_t i = 0; i < take_.size(); ++i) {
    if (take_[i] == 0) continue;
    const Job& job = jobs_[i];
    if (stays(job.request) || std::any_of(job.followers.begin(), job.followers.end(), stays)) return true;
  }
  return false;
}

std::vector<int64_t> PrefillFlow::Plan() {
  for (;;) {
    std::vector<int64_t> remaining, limits;
    for (const Job& job : jobs_) {
      remaining.push_back(std::min(static_cast<int64_t>(job.context.size()) - job.done, RowsWanted(job)));
      int64_t limit = job.request.max_chunk;
      if (!job.cuts.empty()) {
        const int64_t to_cut = job.cuts.front() - job.done;
        limit = limit > 0 ? std::min(limit, to_cut) : to_cut;
      }
      limits.push_back(limit);
    }
    auto take = PlanChunk(remaining, limits, max_chunk_tokens_);
    bool begun = false;  // then there may be room for others
    for (size_t i = 0; i < jobs_.size(); ++i)
      if (take[i] > 0) begun |= Begin(jobs_[i]);
    if (!begun) return take;
  }
}

/// The first chunk of the job is due: what of it is in the cache? False when that was known.
bool PrefillFlow::Begin(Job& job) {
  if (!prefixes_ || std::exchange(job.begun, true)) return false;
  const auto tokens = static_cast<int64_t>(job.context.size());
  // The last token is computed in any case: its logits choose the output.
  const PrefixIndex::Match match = prefixes_->Find(job.context, tokens - 1);
  if (!WantsRows(job.request.state)) {
    prefixes_->Fill(match, &job.request.kv);
    job.cached = job.done = match.snapshot;
  }
  job.cuts = SnapshotCuts(tokens, std::max(job.done, match.snapshot), match.blocks);
  if (job.done == 0) return true;
  PrefillSink& sink = *job.request.sink;
  sink.OnCached(job.cached);
  sink.OnChunk(job.request.kv, 0, job.done, {});
  return true;
}

/// A chunk has ended: was it at a cut?
void PrefillFlow::Keep(Job& job) {
  if (job.cuts.empty() || job.done < job.cuts.front()) return;
  CHECK(job.done == job.cuts.front());
  prefixes_->Insert(std::span(job.context).first(job.done), job.request.kv);
  job.cuts.erase(job.cuts.begin());
}

bool PrefillFlow::Step() {
  last_chunk_tokens_ = 0;
  LeaveHeldLeaders();
  const auto take = Plan();
  last_chunk_tokens_ = std::accumulate(take.begin(), take.end(), int64_t{0});
  if (last_chunk_tokens_ == 0) return false;
  std::vector<Segment> segments;
  for (size_t i = 0; i < jobs_.size(); ++i)
    if (take[i] > 0)
      segments.push_back({&jobs_[i].request.kv, std::span(jobs_[i].context).subspan(jobs_[i].done, take[i]),
                          WantsRows(jobs_[i].request.state)});

  take_ = take;
  const auto logits = model_.Forward(segments, experts_);
  take_.clear();
  if (!logits.ok()) {
    // The rings of these sequences have moved on: only a new prefill can repair them (the router
    // retries).
    for (size_t i = jobs_.size(); i-- > 0;)
      if (take[i] > 0) Fail(i, logits.status());
    return true;
  }
  std::vector<size_t> finished;
  for (size_t i = 0, segment = 0; i < jobs_.size(); ++i) {
    if (take[i] == 0) continue;
    Job& job = jobs_[i];
    std::span<const float> rows;
    if (WantsRows(job.request.state))
      rows = {logits->row(logits->first[segment]).data(), static_cast<size_t>(take[i] * logits->vocab)};
    Report(job, take[i], rows);
    if (job.done == static_cast<int64_t>(job.context.size())) {
      Finish(job, logits->last(segment));
      finished.push_back(i);
    }
    ++segment;
  }
  for (size_t i = finished.size(); i-- > 0;) jobs_.erase(jobs_.begin() + static_cast<int64_t>(finished[i]));
  return true;
}

/// A job and its followers are over by an error that is not theirs: whoever sent them may try again.
void PrefillFlow::Fail(size_t i, const Status& status) {
  Job job = std::move(jobs_[i]);
  jobs_.erase(jobs_.begin() + static_cast<int64_t>(i));
  job.followers.insert(job.followers.begin(), std::move(job.request));
  for (PrefillJob& request : job.followers) {
    request.kv.Release();
    request.sink->OnError(status);
  }
}

/// `count` more tokens are computed; `rows` are their logits if the job wants any.
void PrefillFlow::Report(Job& job, int64_t count, std::span<const float> rows) {
  const SequenceState& state = job.request.state;
  const int64_t from = std::exchange(job.done, job.done + count);
  Keep(job);
  job.request.sink->OnChunk(job.request.kv, from, job.done,
                            state.want_logits ? rows : std::span<const float>());
  if (state.params.prompt_logprobs == kNoLogprobs) return;
  auto entries = PromptLogprobs(state, from, job.done, rows, model_.config().vocab_size);
  if (!entries.empty()) job.request.sink->OnPromptLogprobs(from + 1, std::move(entries));
}

void PrefillFlow::Finish(Job& job, std::span<const float> last_logits) {
  // Before the job's own KV goes to its sink.
  for (PrefillJob& follower : job.followers) CopyHandOff(job.request.kv, job.done, &follower.kv);
  Choose(job.request, last_logits);
  for (PrefillJob& follower : job.followers) {
    if (job.cached > 0) follower.sink->OnCached(job.cached);
    follower.sink->OnChunk(follower.kv, 0, job.done, {});
    Choose(follower, last_logits);
  }
}

/// The first output token, by the request's own params: if that fails it fails alone.
void PrefillFlow::Choose(PrefillJob& request, std::span<const float> last_logits) {
  const SequenceState& state = request.state;
  TokenHistory history = HistoryOf(state, model_.config().vocab_size);
  auto first = NextToken(state, model_.config().eos_token_ids, sampler_, history, last_logits,
                         static_cast<int64_t>(state.emitted.size()));
  if (!first.ok()) {
    request.kv.Release();
    return request.sink->OnError(first.status());
  }
  request.sink->OnFirstToken(std::move(*first), std::move(request.kv));
}

}  // namespace cachalot

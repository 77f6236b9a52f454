#include "prefill_worker/prefill_flow.h"

#include "common/base/check.h"
#include "prefill_worker/chunk_planner.h"

namespace cachalot {

PrefillFlow::PrefillFlow(Model& model, ExpertBackend& experts, int64_t max_chunk_tokens)
    : model_(model),
      experts_(experts),
      max_chunk_tokens_(max_chunk_tokens),
      sampler_(model.config().vocab_size) {
  CHECK(max_chunk_tokens >= 1);
}

void PrefillFlow::Submit(PrefillJob request) {
  Job job{std::move(request), {}, 0};
  job.context = job.request.state.Context();
  CHECK(!job.context.empty());
  jobs_.push_back(std::move(job));
}

void PrefillFlow::Cancel(uint64_t id) {
  std::erase_if(jobs_, [id](const Job& job) { return job.request.id == id; });
}

int64_t PrefillFlow::waiting_tokens() const {
  int64_t tokens = 0;
  for (const Job& job : jobs_) tokens += static_cast<int64_t>(job.context.size()) - job.done;
  return tokens;
}

bool PrefillFlow::Step() {
  last_chunk_tokens_ = 0;
  if (jobs_.empty()) return false;
  std::vector<int64_t> remaining, limits;
  for (const Job& job : jobs_) {
    remaining.push_back(static_cast<int64_t>(job.context.size()) - job.done);
    limits.push_back(job.request.max_chunk);
  }
  const auto take = PlanChunk(remaining, limits, max_chunk_tokens_);
  std::vector<Segment> segments;
  for (int64_t count : take) last_chunk_tokens_ += count;
  for (size_t i = 0; i < jobs_.size(); ++i)
    if (take[i] > 0)
      segments.push_back({&jobs_[i].request.kv, std::span(jobs_[i].context).subspan(jobs_[i].done, take[i]),
                          jobs_[i].request.state.want_logits});

  const auto logits = model_.Forward(segments, experts_);
  if (!logits.ok()) {
    // The rings of these sequences have moved on: only a new prefill can repair them (DESIGN 7: the router
    // retries).
    for (size_t i = jobs_.size(); i-- > 0;) {
      if (take[i] == 0) continue;
      auto sink = jobs_[i].request.sink;
      jobs_.erase(jobs_.begin() + static_cast<int64_t>(i));
      sink->OnError(logits.status());
    }
    return true;
  }
  std::vector<size_t> finished;
  for (size_t i = 0, segment = 0; i < jobs_.size(); ++i) {
    if (take[i] == 0) continue;
    Job& job = jobs_[i];
    std::span<const float> rows;
    if (job.request.state.want_logits)
      rows = {logits->row(logits->first[segment]).data(), static_cast<size_t>(take[i] * logits->vocab)};
    job.request.sink->OnChunk(job.request.kv, job.done, job.done + take[i], rows);
    job.done += take[i];
    if (job.done == static_cast<int64_t>(job.context.size())) {
      Finish(job, logits->last(segment));
      finished.push_back(i);
    }
    ++segment;
  }
  for (size_t i = finished.size(); i-- > 0;) jobs_.erase(jobs_.begin() + static_cast<int64_t>(finished[i]));
  return true;
}

void PrefillFlow::Finish(Job& job, std::span<const float> last_logits) {
  const SequenceState& state = job.request.state;
  const auto index = static_cast<int64_t>(state.emitted.size());
  const auto token = NextToken(state, sampler_, last_logits, index);
  if (!token.ok()) {
    job.request.kv.Release();
    return job.request.sink->OnError(token.status());
  }
  const FinishReason finish = FinishAfter(state.params, model_.config().eos_token_ids, *token, index);
  job.request.sink->OnFirstToken(*token, finish, std::move(job.request.kv));
}

}  // namespace cachalot

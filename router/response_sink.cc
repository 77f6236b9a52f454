#include "router/response_sink.h"

#include <algorithm>
#include <utility>

#include "common/cluster/compat.h"

namespace cachalot {
namespace {

constexpr size_t kLogprobsEach = 4096;  // entries of a message: below 1 MiB

}  // namespace

rpc::Task<bool> ResponseStream::Start() {
  if (++holding_ < choices_) {
    // Those that are missing end in time, by their grant or by a failure.
    const bool all = co_await all_started_.WaitUntil(TimePoint::max());
    co_return all && !abandoned_;
  }
  v1::GenerateResponse response;
  *response.mutable_started() = started_;
  const bool written = co_await Write(std::move(response));
  if (!written) abandoned_ = true;
  all_started_.Set();
  co_return written && !abandoned_;
}

void ResponseStream::Abandon() {
  abandoned_ = true;
  all_started_.Set();
}

rpc::Task<bool> ResponseStream::Write(v1::GenerateResponse response) {
  while (busy_) {
    if (loop_->draining()) {
      co_await rpc::Yield(loop_);  // waits return at once now, and the write in flight is about to fail
      continue;
    }
    free_.Reset();
    co_await free_.WaitUntil(TimePoint::max());
  }
  busy_ = true;
  const bool written = co_await writer_->Write(response);
  busy_ = false;
  free_.Set();
  co_return written;
}

void ResponseStream::SawToken() {
  if (!std::exchange(any_token_, true)) first_token_seconds_->Observe(Seconds(loop_->Now() - start_));
}

ChoiceSink::ChoiceSink(ResponseStream* stream, int choice, OutputText text,
                       const std::vector<int32_t>& emitted)
    : stream_(stream), choice_(choice), text_(std::move(text)) {
  for (const int32_t token : emitted)
    if (!text_.stopped()) text_.Push(token);
}

rpc::Task<bool> ChoiceSink::Started() { return stream_->Start(); }

rpc::Task<bool> ChoiceSink::Tokens(std::vector<int32_t> tokens) {
  stream_->SawToken();
  v1::GenerateResponse response;
  v1::Tokens* out = response.mutable_tokens();
  out->set_choice(choice_);
  for (size_t i = 0; i < tokens.size() && !text_.stopped(); ++i) {
    out->add_ids(tokens[i]);
    out->mutable_text()->append(text_.Push(tokens[i]));
    if (i < logprobs_.size()) *out->add_logprobs() = ToProto(logprobs_[i]);
  }
  logprobs_.clear();
  const bool written = co_await stream_->Write(std::move(response));
  co_return written;
}

rpc::Task<bool> ChoiceSink::PromptLogprobs(int64_t first, std::vector<TokenLogprobs> entries) {
  for (size_t at = 0; at < entries.size(); at += kLogprobsEach) {
    v1::GenerateResponse response;
    response.mutable_prompt_logprobs()->set_first(static_cast<int32_t>(first + static_cast<int64_t>(at)));
    for (size_t i = at; i < std::min(at + kLogprobsEach, entries.size()); ++i)
      *response.mutable_prompt_logprobs()->add_entries() = ToProto(entries[i]);
    const bool written = co_await stream_->Write(std::move(response));
    if (!written) co_return false;
  }
  co_return true;
}

rpc::Task<bool> ChoiceSink::Finished(FinishReason reason, int prompt_tokens, int cached_tokens) {
  v1::GenerateResponse response;
  v1::Finished* finished = response.mutable_finished();
  const bool length = reason == FinishReason::kLength && !text_.stopped();
  finished->set_choice(choice_);
  finished->set_reason(length ? v1::FINISH_REASON_LENGTH : v1::FINISH_REASON_STOP);
  finished->set_matched_stop(text_.matched_stop());
  finished->set_text(text_.Finish());
  finished->mutable_usage()->set_prompt_tokens(prompt_tokens);
  finished->mutable_usage()->set_cached_tokens(cached_tokens);
  finished->mutable_usage()->set_completion_tokens(static_cast<int32_t>(text_.tokens()));
  const bool written = co_await stream_->Write(std::move(response));
  co_return written;
}

}  // namespace cachalot

#include "decode_worker/step_batches.h"

#include <optional>
#include <utility>

#include "common/cluster/compat.h"

namespace cachalot {
namespace {

// Varints of handle, index, token and finish, and the tags and lengths of what follows.
constexpr size_t kTokenBytes = 10 + 10 + 10 + 1 + 2 * 6;

}  // namespace

void StepBatches::Add(uint64_t handle, const TokenOut& token, bool with_logits) {
  std::optional<v1::TokenLogprobs> logprobs;
  if (token.logprobs) logprobs = ToProto(*token.logprobs);
  const size_t bytes = kTokenBytes + (with_logits ? token.logits.size() * sizeof(float) : 0) +
                       (logprobs ? logprobs->ByteSizeLong() : 0);
  if (batches_.empty() || bytes_ + bytes > limit_) {
    batches_.emplace_back();
    bytes_ = 0;
  }
  bytes_ += bytes;
  v1::StepBatch& batch = batches_.back();
  batch.add_handles(handle);
  batch.add_indices(token.index);
  batch.add_tokens(token.token);
  batch.add_finish(ToProto(token.finish));
  if (with_logits) batch.add_logits(token.logits.data(), token.logits.size() * sizeof(float));
  if (!logprobs) return;
  while (batch.logprobs_size() < batch.tokens_size() - 1) batch.add_logprobs();
  *batch.add_logprobs() = std::move(*logprobs);
}

std::vector<v1::StepBatch> StepBatches::Take() {
  for (v1::StepBatch& batch : batches_)
    while (batch.logprobs_size() > 0 && batch.logprobs_size() < batch.tokens_size()) batch.add_logprobs();
  return std::move(batches_);
}

}  // namespace cachalot

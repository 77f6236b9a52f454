// cachalot.v1.SequenceState as a router sends it; the same bytes as TokenLogprobs.

#include <cmath>

#include "common/cluster/compat.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/quiet_logs.h"

namespace cachalot::fuzz {
namespace {

constexpr int kVocab = 64;

bool InVocabulary(std::span<const int32_t> ids) {
  for (int32_t id : ids)
    if (id < 0 || id >= kVocab) return false;
  return true;
}

void CheckSequence(const v1::SequenceState& proto) {
  const auto state = FromProto(proto, kVocab);
  if (!state.ok()) {
    CHECK(state.status().code() == StatusCode::kInvalidArgument);
    return;
  }
  const GenerationParams& params = state->params;
  CHECK(!state->prompt.empty() && InVocabulary(state->prompt) && InVocabulary(state->emitted));
  CHECK(InVocabulary(state->forced) && params.max_tokens > static_cast<int64_t>(state->emitted.size()));
  CHECK(state->MaxTokens() > 0);
  CHECK(ValidateGenerationParams(params, kVocab).ok() && std::isfinite(params.sampling.temperature));
  for (const LogitBias& entry : params.sampling.logit_bias)
    CHECK(entry.id >= 0 && entry.id < kVocab && std::isfinite(entry.bias));
  const v1::SequenceState again = ToProto(*state);
  const auto back = FromProto(again, kVocab);
  CHECK_MSG(back.ok(), StatusMessage(back.status()));
  CHECK(ToProto(*back).SerializeAsString() == again.SerializeAsString());
  CHECK(back->request_id == state->request_id && back->prompt == state->prompt &&
        back->emitted == state->emitted);
}

void CheckLogprobs(const v1::TokenLogprobs& proto) {
  const auto logprobs = FromProto(proto);
  CHECK(logprobs.ok() == (proto.top_ids_size() == proto.top_logprobs_size()));
  if (!logprobs.ok() || !*logprobs) return;
  const v1::TokenLogprobs again = ToProto(**logprobs);
  CHECK(again.top_ids_size() == proto.top_ids_size() && again.has_logprob());
  const auto back = FromProto(again);
  CHECK(back.ok() && ToProto(**back).SerializeAsString() == again.SerializeAsString());
}

}  // namespace

std::vector<Seed> Seeds() {
  SequenceState small;
  small.request_id = "r1";
  small.prompt = {1, 2, 3};
  small.params.max_tokens = 5;
  SequenceState full = small;
  full.emitted = {4, 5};
  full.forced = {6};
  full.want_logits = true;
  full.params.stop_token_ids = {7, 8};
  full.params.prompt_logprobs = 2;
  SamplingParams& sampling = full.params.sampling;
  sampling = {0.7f, 20, 0.9f, 1234};
  sampling.min_p = .1f;
  sampling.frequency_penalty = .5f;
  sampling.presence_penalty = -.5f;
  sampling.repetition_penalty = 1.2f;
  sampling.logit_bias = {{3, 1.f}, {9, -100.f}};
  sampling.min_tokens = 2;
  sampling.logprobs = 5;
  SequenceState outside = small;
  outside.prompt = {64};
  return {{"small", ToProto(small).SerializeAsString()},
          {"full", ToProto(full).SerializeAsString()},
          {"outside", ToProto(outside).SerializeAsString()},
          {"logprobs", ToProto(TokenLogprobs{-.5f, {{3, -.5f}, {4, -2.f}}}).SerializeAsString()}};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cachalot;
  fuzz::QuietLogs();
  v1::SequenceState sequence;
  if (sequence.ParseFromArray(data, static_cast<int>(size))) fuzz::CheckSequence(sequence);
  v1::TokenLogprobs logprobs;
  if (logprobs.ParseFromArray(data, static_cast<int>(size))) fuzz::CheckLogprobs(logprobs);
  return 0;
}

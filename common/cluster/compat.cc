#include "common/cluster/compat.h"

#include <string>

namespace cachalot {

v1::Compat MakeCompat(const ModelWeights& weights, const KvLayout& layout, const kernels::KernelTable& kernels) {
  v1::Compat compat;
  compat.set_weights(weights.fingerprint);
  compat.set_protocol(kProtocolVersion);
  compat.set_state_format(1);
  compat.set_mode(std::string(kernels::ModeName(kernels.mode)));
  compat.set_kv_layout(layout.Describe());
  compat.set_reduction_groups(kReductionGroups);
  compat.set_numerics(kernels.numerics_id);
  return compat;
}

Status CheckCompat(const v1::Compat& ours, const v1::Compat& theirs, std::string_view peer) {
  const auto differ = [&](const char* field, const std::string& a, const std::string& b) {
    return FailedPrecondition(std::string(peer) + " is not compatible: " + field + " is \"" + b + "\" there, \"" + a +
                              "\" here; run all roles with the same checkpoint, mode and back end");
  };
  if (ours.weights() != theirs.weights()) return differ("weights", ours.weights(), theirs.weights());
  // Versions N and N-1 work together.
  const uint32_t low = std::min(ours.protocol(), theirs.protocol()), high = std::max(ours.protocol(), theirs.protocol());
  if (high - low > 1)
    return differ("protocol", std::to_string(ours.protocol()), std::to_string(theirs.protocol()));
  if (ours.state_format() != theirs.state_format())
    return differ("state_format", std::to_string(ours.state_format()), std::to_string(theirs.state_format()));
  if (ours.mode() != theirs.mode()) return differ("mode", ours.mode(), theirs.mode());
  if (ours.kv_layout() != theirs.kv_layout()) return differ("kv_layout", ours.kv_layout(), theirs.kv_layout());
  if (ours.reduction_groups() != theirs.reduction_groups())
    return differ("reduction_groups", std::to_string(ours.reduction_groups()),
                  std::to_string(theirs.reduction_groups()));
  if (ours.numerics() != theirs.numerics()) return differ("numerics", ours.numerics(), theirs.numerics());
  return OkStatus();
}

v1::SequenceState ToProto(const SequenceState& state) {
  v1::SequenceState proto;
  proto.set_request_id(state.request_id);
  proto.mutable_prompt()->Assign(state.prompt.begin(), state.prompt.end());
  proto.mutable_emitted()->Assign(state.emitted.begin(), state.emitted.end());
  v1::SequenceParams& params = *proto.mutable_params();
  params.set_temperature(state.params.sampling.temperature);
  params.set_top_k(state.params.sampling.top_k);
  params.set_top_p(state.params.sampling.top_p);
  params.set_seed(state.params.sampling.seed);
  params.set_max_tokens(state.params.max_tokens);
  params.set_ignore_eos(state.params.ignore_eos);
  params.mutable_stop_token_ids()->Assign(state.params.stop_token_ids.begin(), state.params.stop_token_ids.end());
  params.set_min_p(state.params.sampling.min_p);
  params.set_frequency_penalty(state.params.sampling.frequency_penalty);
  params.set_presence_penalty(state.params.sampling.presence_penalty);
  params.set_repetition_penalty(state.params.sampling.repetition_penalty);
  for (const LogitBias& entry : state.params.sampling.logit_bias) {
    params.add_logit_bias_ids(entry.id);
    params.add_logit_bias_values(entry.bias);
  }
  params.set_min_tokens(state.params.sampling.min_tokens);
  if (state.params.sampling.logprobs != kNoLogprobs) params.set_logprobs(state.params.sampling.logprobs);
  if (state.params.prompt_logprobs != kNoLogprobs) params.set_prompt_logprobs(state.params.prompt_logprobs);
  proto.mutable_forced()->Assign(state.forced.begin(), state.forced.end());
  proto.set_want_logits(state.want_logits);
  return proto;
}

static StatusOr<SamplingParams> SamplingFromProto(const v1::SequenceParams& proto) {
  SamplingParams params{proto.temperature(), proto.top_k(), proto.top_p(), proto.seed()};
  params.min_p = proto.min_p();
  params.frequency_penalty = proto.frequency_penalty();
  params.presence_penalty = proto.presence_penalty();
  if (proto.has_repetition_penalty()) params.repetition_penalty = proto.repetition_penalty();
  if (proto.logit_bias_ids_size() != proto.logit_bias_values_size())
    return InvalidArgument("logit_bias: " + std::to_string(proto.logit_bias_ids_size()) + " ids with " +
                           std::to_string(proto.logit_bias_values_size()) + " values");
  for (int i = 0; i < proto.logit_bias_ids_size(); ++i)
    params.logit_bias.push_back({proto.logit_bias_ids(i), proto.logit_bias_values(i)});
  params.min_tokens = proto.min_tokens();
  if (proto.has_logprobs()) params.logprobs = proto.logprobs();
  return params;
}

StatusOr<SequenceState> FromProto(const v1::SequenceState& proto, int vocab_size) {
  SequenceState state;
  state.request_id = proto.request_id();
  state.prompt.assign(proto.prompt().begin(), proto.prompt().end());
  state.emitted.assign(proto.emitted().begin(), proto.emitted().end());
  state.forced.assign(proto.forced().begin(), proto.forced().end());
  state.want_logits = proto.want_logits();
  const v1::SequenceParams& params = proto.params();
  ASSIGN_OR_RETURN(state.params.sampling, SamplingFromProto(params));
  if (params.has_prompt_logprobs()) state.params.prompt_logprobs = params.prompt_logprobs();
  state.params.max_tokens = params.max_tokens();
  state.params.ignore_eos = params.ignore_eos();
  state.params.stop_token_ids.assign(params.stop_token_ids().begin(), params.stop_token_ids().end());
  if (state.prompt.empty()) return InvalidArgument("sequence without a prompt");
  for (const auto* ids : {&state.prompt, &state.emitted, &state.forced})
    for (int32_t id : *ids)
      if (id < 0 || id >= vocab_size)
        return InvalidArgument("token id " + std::to_string(id) + " is not in [0, " + std::to_string(vocab_size) + ")");
  if (state.params.max_tokens <= static_cast<int64_t>(state.emitted.size()))
    return InvalidArgument("max_tokens " + std::to_string(state.params.max_tokens) + " with " +
                           std::to_string(state.emitted.size()) + " tokens emitted already");
  RETURN_IF_ERROR(ValidateGenerationParams(state.params, vocab_size));
  return state;
}

v1::TokenLogprobs ToProto(const TokenLogprobs& logprobs) {
  v1::TokenLogprobs proto;
  proto.set_logprob(logprobs.chosen);
  for (const TokenLogprob& entry : logprobs.top) {
    proto.add_top_ids(entry.id);
    proto.add_top_logprobs(entry.logprob);
  }
  return proto;
}

StatusOr<std::optional<TokenLogprobs>> FromProto(const v1::TokenLogprobs& proto) {
  if (proto.top_ids_size() != proto.top_logprobs_size())
    return InvalidArgument("log probabilities: " + std::to_string(proto.top_ids_size()) + " ids with " +
                           std::to_string(proto.top_logprobs_size()) + " values");
  if (!proto.has_logprob()) return std::optional<TokenLogprobs>();
  TokenLogprobs logprobs{proto.logprob(), {}};
  for (int i = 0; i < proto.top_ids_size(); ++i)
    logprobs.top.push_back({proto.top_ids(i), proto.top_logprobs(i)});
  return std::optional(std::move(logprobs));
}

v1::StepFinish ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::STEP_FINISH_STOP;
    case FinishReason::kLength:
      return v1::STEP_FINISH_LENGTH;
    case FinishReason::kNone:
      break;
  }
  return v1::STEP_FINISH_NONE;
}

FinishReason FromProto(v1::StepFinish finish) {
  if (finish == v1::STEP_FINISH_STOP) return FinishReason::kStop;
  return finish == v1::STEP_FINISH_LENGTH ? FinishReason::kLength : FinishReason::kNone;
}

}  // namespace cachalot

#include "router/frontend.h"

#include <algorithm>

#include "common/base/ids.h"
#include "common/model/config.h"
#include "common/tokenizer/chat_format.h"

namespace cachalot {
namespace {

constexpr int kDefaultMaxTokens = 16;

SamplingParams SamplingOf(const v1::SamplingParams& proto) {
  SamplingParams params;
  if (proto.has_temperature()) params.temperature = proto.temperature();
  if (proto.has_top_k()) params.top_k = proto.top_k();
  if (proto.has_top_p()) params.top_p = proto.top_p();
  params.seed = proto.has_seed() ? proto.seed() : RandomId();
  if (proto.has_min_p()) params.min_p = proto.min_p();
  if (proto.has_frequency_penalty()) params.frequency_penalty = proto.frequency_penalty();
  if (proto.has_presence_penalty()) params.presence_penalty = proto.presence_penalty();
  if (proto.has_repetition_penalty()) params.repetition_penalty = proto.repetition_penalty();
  for (const v1::LogitBias& entry : proto.logit_bias())
    params.logit_bias.push_back({entry.id(), entry.bias()});
  if (proto.has_min_tokens()) params.min_tokens = proto.min_tokens();
  return params;
}

/// -1, which no request may say, is off inside.
StatusOr<int> LogprobsOf(const char* field, int count) {
  if (count < 0 || count > kMaxLogprobs)
    return InvalidArgument(std::string(field) + ": wanted 0 to " + std::to_string(kMaxLogprobs) + ", got " +
                           std::to_string(count));
  return count;
}

}  // namespace

Status CheckOwnFiles(const v1::GetModelAssetsResponse& own, const v1::GetModelAssetsResponse& workers) {
  const auto differs = [&](const char* file) {
    return FailedPrecondition(own.model() + "/" + file + " is not the " + file +
                              " of the workers' model: give their directory as --model, or none");
  };
  ASSIGN_OR_RETURN(const ModelConfig ours, ModelConfig::Parse(own.config_json(), own.model() + "/config.json"));
  ASSIGN_OR_RETURN(const ModelConfig theirs, ModelConfig::Parse(workers.config_json(), "the workers' config.json"));
  if (ours.Canonical() != theirs.Canonical()) return differs("config.json");
  const bool both = !workers.tokenizer_json().empty();
  if (both && own.tokenizer_json() != workers.tokenizer_json()) return differs("tokenizer.json");
  return OkStatus();
}

StatusOr<std::unique_ptr<Frontend>> Frontend::Make(const v1::GetModelAssetsResponse& assets,
                                                   const std::string& mode, const std::string& compat) {
  ASSIGN_OR_RETURN(const ModelConfig config,
                   ModelConfig::Parse(assets.config_json(), assets.model() + "/config.json"));
  std::unique_ptr<Frontend> front(new Frontend);
  if (!assets.tokenizer_json().empty()) {
    ASSIGN_OR_RETURN(front->tokenizer_,
                     Tokenizer::FromJson(assets.tokenizer_json(), assets.model() + "/tokenizer.json"));
    const Tokenizer& tokenizer = *front->tokenizer_;
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)  // text never becomes an added token
      if (!tokenizer.IsAdded(id))
        front->longest_token_ = std::max(front->longest_token_, tokenizer.TokenBytes(id).size());
  }
  front->limits_ = {config.vocab_size, config.max_position_embeddings};
  front->info_.set_model(assets.model());
  front->info_.set_vocab_size(config.vocab_size);
  front->info_.set_max_context_tokens(config.max_position_embeddings);
  front->info_.mutable_eos_token_ids()->Assign(config.eos_token_ids.begin(), config.eos_token_ids.end());
  front->info_.set_has_tokenizer(front->tokenizer_ != nullptr);
  front->info_.set_mode(mode);
  front->compat_ = compat;
  front->info_.set_version(CACHALOT_VERSION);
  return front;
}

PromptText PromptText::Of(const v1::Chat& chat) {
  PromptText of;
  of.chat = true;
  for (const v1::ChatMessage& message : chat.messages()) of.messages.push_back({message.role(), message.content()});
  return of;
}

size_t PromptText::Bytes() const {
  size_t bytes = text.size();
  for (const ChatMessage& message : messages) bytes += message.content.size();
  return bytes;
}

StatusOr<std::vector<int32_t>> Frontend::Encode(const PromptText& text) const {
  if (!tokenizer_) return FailedPrecondition("this model has no tokenizer: send token_ids");
  return text.chat ? EncodeChat(*tokenizer_, text.messages) : tokenizer_->Encode(text.text, false);
}

Status Frontend::CheckMessages(const v1::Chat& chat) const {
  if (chat.messages_size() <= limits_.max_context_tokens) return OkStatus();
  return OutOfRange("the chat has " + std::to_string(chat.messages_size()) + " messages: more than the context of " +
                    std::to_string(limits_.max_context_tokens) + " tokens; send fewer");
}

Status Frontend::CheckLength(const PromptText& text) const {
  if (longest_token_ == 0) return OkStatus();
  const auto least = static_cast<int64_t>((text.Bytes() + longest_token_ - 1) / longest_token_);
  if (least < limits_.max_context_tokens) return OkStatus();
  return OutOfRange("the prompt has " + std::to_string(text.Bytes()) + " bytes, at least " + std::to_string(least) +
                    " tokens, and at least one is to come: together more than the context of " +
                    std::to_string(limits_.max_context_tokens) + "; shorten the prompt");
}

StatusOr<SequenceState> Frontend::Admit(const v1::GenerateRequest& request, std::vector<int32_t> prompt) const {
  SequenceState state;
  state.request_id = request.request_id().empty() ? HexId(RandomId()) : request.request_id();
  switch (request.input_case()) {
    case v1::GenerateRequest::kTokenIds:
      state.prompt.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
      break;
    case v1::GenerateRequest::kText:
    case v1::GenerateRequest::kChat:
      state.prompt = std::move(prompt);
      break;
    case v1::GenerateRequest::INPUT_NOT_SET:
      return InvalidArgument("no input: wanted one of token_ids, text and chat");
  }
  state.emitted.assign(request.resume_tokens().begin(), request.resume_tokens().end());
  state.params.sampling = SamplingOf(request.sampling());
  if (request.has_logprobs()) {
    ASSIGN_OR_RETURN(state.params.sampling.logprobs, LogprobsOf("logprobs", request.logprobs()));
  }
  if (request.has_prompt_logprobs()) {
    ASSIGN_OR_RETURN(state.params.prompt_logprobs, LogprobsOf("prompt_logprobs", request.prompt_logprobs()));
  }
  state.params.max_tokens = request.has_max_tokens() ? request.max_tokens() : kDefaultMaxTokens;
  state.params.ignore_eos = request.ignore_eos();
  state.params.stop_token_ids.assign(request.stop_token_ids().begin(), request.stop_token_ids().end());
  RETURN_IF_ERROR(cachalot::Admit(state, limits_));
  return state;
}

StatusOr<SequenceState> Frontend::AdmitLogits(const v1::LogitsRequest& request) const {
  const int64_t count = request.ids_size(), decode = request.decode();
  if (decode >= count)
    return InvalidArgument("decode is " + std::to_string(decode) + " of " + std::to_string(count) +
                           " ids: at least one must be the prompt");
  SequenceState state;
  state.request_id = "logits";
  state.prompt.assign(request.ids().begin(), request.ids().begin() + (count - decode));
  state.forced.assign(request.ids().begin() + (count - decode), request.ids().end());
  state.forced.push_back(0);  // what comes out behind the last id is not wanted
  state.want_logits = true;
  state.params.max_tokens = static_cast<int>(decode) + 1;
  state.params.ignore_eos = true;
  RETURN_IF_ERROR(cachalot::Admit(state, limits_));
  return state;
}

StatusOr<OutputOptions> Frontend::AdmitOutput(const v1::GenerateRequest& request) const {
  OutputOptions options;
  if (request.has_n()) options.n = request.n();
  options.stop.assign(request.stop().begin(), request.stop().end());
  RETURN_IF_ERROR(ValidateOutputOptions(options, tokenizer_ != nullptr));
  if (options.n > 1 && request.resume_tokens_size() > 0)
    return InvalidArgument("resume_tokens: wanted none with n of " + std::to_string(options.n) + ", got " +
                           std::to_string(request.resume_tokens_size()) +
                           ": resume each choice alone, with its seed");
  return options;
}

}  // namespace cachalot

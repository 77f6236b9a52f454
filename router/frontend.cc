#include "router/frontend.h"

#include "common/base/ids.h"
#include "common/model/config.h"
#include "common/tokenizer/chat_format.h"

namespace cachalot {
namespace {

constexpr int kDefaultMaxTokens = 16;

}  // namespace

StatusOr<std::unique_ptr<Frontend>> Frontend::Make(const v1::GetModelAssetsResponse& assets,
                                                   const std::string& mode) {
  ASSIGN_OR_RETURN(const ModelConfig config,
                   ModelConfig::Parse(assets.config_json(), assets.model() + "/config.json"));
  std::unique_ptr<Frontend> front(new Frontend);
  if (!assets.tokenizer_json().empty()) {
    ASSIGN_OR_RETURN(front->tokenizer_,
                     Tokenizer::FromJson(assets.tokenizer_json(), assets.model() + "/tokenizer.json"));
  }
  front->limits_ = {config.vocab_size, config.max_position_embeddings};
  front->info_.set_model(assets.model());
  front->info_.set_vocab_size(config.vocab_size);
  front->info_.set_max_context_tokens(config.max_position_embeddings);
  front->info_.mutable_eos_token_ids()->Assign(config.eos_token_ids.begin(), config.eos_token_ids.end());
  front->info_.set_has_tokenizer(front->tokenizer_ != nullptr);
  front->info_.set_mode(mode);
  front->info_.set_version(CACHALOT_VERSION);
  return front;
}

StatusOr<std::vector<int32_t>> Frontend::EncodeText(const std::string& text) const {
  if (!tokenizer_) return FailedPrecondition("this model has no tokenizer: send token_ids");
  return tokenizer_->Encode(text, false);
}

StatusOr<std::vector<int32_t>> Frontend::EncodeChat(const v1::Chat& chat) const {
  if (!tokenizer_) return FailedPrecondition("this model has no tokenizer: send token_ids");
  std::vector<ChatMessage> messages;
  for (const v1::ChatMessage& message : chat.messages())
    messages.push_back({message.role(), message.content()});
  return cachalot::EncodeChat(*tokenizer_, messages);
}

StatusOr<SequenceState> Frontend::Admit(const v1::GenerateRequest& request) const {
  SequenceState state;
  state.request_id = request.request_id().empty() ? HexId(RandomId()) : request.request_id();
  switch (request.input_case()) {
    case v1::GenerateRequest::kTokenIds:
      state.prompt.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
      break;
    case v1::GenerateRequest::kText: {
      ASSIGN_OR_RETURN(state.prompt, EncodeText(request.text()));
      break;
    }
    case v1::GenerateRequest::kChat: {
      ASSIGN_OR_RETURN(state.prompt, EncodeChat(request.chat()));
      break;
    }
    case v1::GenerateRequest::INPUT_NOT_SET:
      return InvalidArgument("no input: wanted one of token_ids, text and chat");
  }
  state.emitted.assign(request.resume_tokens().begin(), request.resume_tokens().end());
  const v1::SamplingParams& sampling = request.sampling();
  if (sampling.has_temperature()) state.params.sampling.temperature = sampling.temperature();
  if (sampling.has_top_k()) state.params.sampling.top_k = sampling.top_k();
  if (sampling.has_top_p()) state.params.sampling.top_p = sampling.top_p();
  state.params.sampling.seed = sampling.has_seed() ? sampling.seed() : RandomId();
  state.params.max_tokens = request.has_max_tokens() ? request.max_tokens() : kDefaultMaxTokens;
  state.params.ignore_eos = request.ignore_eos();
  state.params.stop_token_ids.assign(request.stop_token_ids().begin(), request.stop_token_ids().end());
  RETURN_IF_ERROR(cachalot::Admit(state, limits_));
  return state;
}

}  // namespace cachalot

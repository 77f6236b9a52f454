// cachalot.v1.GenerateRequest as any client may send it, admitted by the router in front of the demo's model; the same
// bytes as TokenizeRequest and LogitsRequest.

#include <algorithm>
#include <cmath>

#include "common/cluster/assets.h"
#include "common/cluster/compat.h"
#include "common/rpc/error_map.h"
#include "router/frontend.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/quiet_logs.h"
#include "tests/support/oracle.h"

namespace cachalot::fuzz {
namespace {

/// With the demo's tokenizer, and the same model without any.
const Frontend& Front(bool tokenizer) {
  static const auto make = [](bool with_tokenizer) {
    auto assets = ReadModelAssets(testing::DemoDirectory());
    CHECK_MSG(assets.ok(), StatusMessage(assets.status()));
    if (!with_tokenizer) assets->clear_tokenizer_json();
    auto front = Frontend::Make(*assets);
    CHECK_MSG(front.ok(), StatusMessage(front.status()));
    return std::move(*front);
  };
  static const auto with = make(true), without = make(false);
  return tokenizer ? *with : *without;
}

void CheckRefusal(const Status& status, bool tokenizer) {
  CHECK(status.code() == StatusCode::kInvalidArgument || status.code() == StatusCode::kOutOfRange ||
        (status.code() == StatusCode::kFailedPrecondition && !tokenizer));
  const grpc::Status said = rpc::ToGrpc(status);
  CHECK(!said.error_message().empty() && said.error_message().size() <= 2000);
}

void CheckAdmitted(const v1::GenerateRequest& request, const SequenceState& state, const Frontend& front) {
  const int vocab = front.limits().vocab_size;
  for (const auto* ids : {&state.prompt, &state.emitted, &state.params.stop_token_ids})
    CHECK(std::all_of(ids->begin(), ids->end(), [&](int32_t id) { return id >= 0 && id < vocab; }));
  CHECK(!state.prompt.empty() && !state.request_id.empty());
  if (request.has_token_ids())
    CHECK(std::equal(state.prompt.begin(), state.prompt.end(), request.token_ids().ids().begin(),
                     request.token_ids().ids().end()));
  const GenerationParams& params = state.params;
  CHECK(params.max_tokens >= 1 && state.MaxTokens() <= front.limits().max_context_tokens);
  CHECK(ValidateGenerationParams(params, vocab).ok());
  CHECK(std::isfinite(params.sampling.temperature) && std::isfinite(params.sampling.repetition_penalty));
  if (request.sampling().has_seed()) CHECK(params.sampling.seed == request.sampling().seed());
  CHECK(state.forced.empty() && !state.want_logits);  // debugging is no public field
  // The workers take what the router admits. With all of its tokens there already it never reaches them.
  if (static_cast<int64_t>(state.emitted.size()) == params.max_tokens) return;
  const auto there = FromProto(ToProto(state), vocab);
  CHECK_MSG(there.ok(), StatusMessage(there.status()));
  CHECK(ToProto(*there).SerializeAsString() == ToProto(state).SerializeAsString());
}

/// The prompt's tokens stand for an output.
void CheckStops(const OutputOptions& options, const SequenceState& state, const Frontend& front) {
  OutputText text(front.tokenizer(), options.stop, state.params.sampling.min_tokens);
  for (size_t i = 0; i < std::min<size_t>(state.prompt.size(), 256) && !text.stopped(); ++i)
    (void)text.Push(state.prompt[i]);
  if (text.stopped())
    CHECK(std::find(options.stop.begin(), options.stop.end(), text.matched_stop()) != options.stop.end());
  (void)text.Finish();
}

/// As GenerationService does it.
StatusOr<SequenceState> Admit(const Frontend& front, const v1::GenerateRequest& request) {
  std::vector<int32_t> prompt;
  if (request.has_text() || request.has_chat()) {
    const PromptText text = request.has_chat() ? PromptText::Of(request.chat()) : PromptText::Of(request.text());
    RETURN_IF_ERROR(front.CheckMessages(request.chat()));
    RETURN_IF_ERROR(front.CheckLength(text));
    ASSIGN_OR_RETURN(prompt, front.Encode(text));
  }
  return front.Admit(request, std::move(prompt));
}

void CheckRequest(v1::GenerateRequest request, bool tokenizer) {
  const Frontend& front = Front(tokenizer);
  const auto state = Admit(front, request);
  const auto options = front.AdmitOutput(request);
  if (!state.ok()) CheckRefusal(state.status(), tokenizer);
  if (!options.ok()) CheckRefusal(options.status(), tokenizer);
  if (state.ok()) CheckAdmitted(request, *state, front);
  if (options.ok())
    CHECK(options->n >= 1 && options->n <= kMaxChoices && options->stop.size() <= kMaxStopStrings);
  if (!state.ok() || !options.ok()) return;
  CheckStops(*options, *state, front);
  // What is drawn where it is absent, given: the same again.
  request.set_request_id(state->request_id);
  request.mutable_sampling()->set_seed(state->params.sampling.seed);
  const auto again = Admit(front, request);
  CHECK_MSG(again.ok(), StatusMessage(again.status()));
  CHECK(ToProto(*again).SerializeAsString() == ToProto(*state).SerializeAsString());
}

void CheckTokenize(const v1::TokenizeRequest& request, bool tokenizer) {
  if (request.input_case() == v1::TokenizeRequest::INPUT_NOT_SET) return;
  const Frontend& front = Front(tokenizer);
  if (const Status few = front.CheckMessages(request.chat()); !few.ok()) return CheckRefusal(few, tokenizer);
  const auto ids = front.Encode(request.has_chat() ? PromptText::Of(request.chat()) : PromptText::Of(request.text()));
  if (!ids.ok()) return CheckRefusal(ids.status(), tokenizer);
  const int32_t known = front.tokenizer()->vocab_size();
  CHECK(std::all_of(ids->begin(), ids->end(), [&](int32_t id) { return id >= 0 && id < known; }));
  if (request.has_text()) CHECK(front.tokenizer()->DecodeRaw(*ids) == request.text());
}

void CheckLogits(const v1::LogitsRequest& request) {
  const Frontend& front = Front(false);
  const auto state = front.AdmitLogits(request);
  if (!state.ok()) return CheckRefusal(state.status(), true);
  std::vector<int32_t> ids = state->prompt;
  ids.insert(ids.end(), state->forced.begin(), state->forced.end() - 1);
  CHECK(std::equal(ids.begin(), ids.end(), request.ids().begin(), request.ids().end()));
  CHECK(!state->prompt.empty() && state->want_logits && state->forced.size() == request.decode() + size_t{1});
  CHECK(state->params.max_tokens == std::ssize(state->forced) &&
        state->MaxTokens() <= front.limits().max_context_tokens);
  const auto there = FromProto(ToProto(*state), front.limits().vocab_size);
  CHECK_MSG(there.ok(), StatusMessage(there.status()));
  CHECK(ToProto(*there).SerializeAsString() == ToProto(*state).SerializeAsString());
}

}  // namespace

std::vector<Seed> Seeds() {
  v1::GenerateRequest ids, text, chat, sampled, resumed, stops, beyond, none;
  for (int id : {1, 2, 3}) ids.mutable_token_ids()->add_ids(id);
  text.set_request_id("r1");
  text.set_text("In the beginning <｜User｜> God created the heaven");
  text.set_max_tokens(32);
  text.set_logprobs(5);
  text.set_prompt_logprobs(0);
  for (const char* role : {"system", "user", "assistant", "user"}) {
    v1::ChatMessage& message = *chat.mutable_chat()->add_messages();
    message.set_role(role);
    message.set_content(std::string("Genesis 1:1 ") + role);
  }
  sampled = ids;
  v1::SamplingParams& params = *sampled.mutable_sampling();
  params.set_temperature(.7f);
  params.set_top_k(20);
  params.set_top_p(.9f);
  params.set_seed(1234);
  params.set_min_p(.1f);
  params.set_frequency_penalty(.5f);
  params.set_presence_penalty(-.5f);
  params.set_repetition_penalty(1.2f);
  params.set_min_tokens(2);
  for (int id : {3, 9}) {
    params.add_logit_bias()->set_id(id);
    params.mutable_logit_bias()->rbegin()->set_bias(-1.5f);
  }
  sampled.add_stop_token_ids(7);
  sampled.set_n(3);
  resumed = sampled;
  resumed.clear_n();
  resumed.set_max_tokens(4);
  for (int id : {4, 5}) resumed.add_resume_tokens(id);
  stops = text;
  stops.add_stop("created");
  stops.add_stop("\n\n");
  stops.set_ignore_eos(true);
  beyond = ids;
  beyond.set_max_tokens(1 << 30);
  none.set_max_tokens(1);
  v1::LogitsRequest logits, decode;
  for (int id : {1, 2, 3}) logits.add_ids(id);
  decode = logits;
  logits.set_max_chunk_tokens(2);
  decode.set_decode(2);
  v1::TokenizeRequest words, message;
  words.set_text("In the beginning <｜User｜> God");
  message.mutable_chat()->add_messages()->set_role("user");
  message.mutable_chat()->mutable_messages(0)->set_content("Genesis 1:1");
  const auto seed = [](const char* name, const google::protobuf::MessageLite& request) {
    return Seed{name, request.SerializeAsString()};
  };
  return {seed("ids", ids),         seed("text", text),
          seed("chat", chat),       seed("sampled", sampled),
          seed("resumed", resumed), seed("stops", stops),
          seed("beyond", beyond),   seed("no_input", none),
          seed("logits", logits),   seed("logits_decode", decode),
          seed("tokenize", words),  seed("tokenize_chat", message)};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cachalot;
  fuzz::QuietLogs();
  v1::GenerateRequest request;
  v1::TokenizeRequest tokenize;
  v1::LogitsRequest logits;
  const int bytes = static_cast<int>(size);
  const bool generates = request.ParseFromArray(data, bytes), tokenizes = tokenize.ParseFromArray(data, bytes);
  for (bool tokenizer : {true, false}) {
    if (generates) fuzz::CheckRequest(request, tokenizer);
    if (tokenizes) fuzz::CheckTokenize(tokenize, tokenizer);
  }
  if (logits.ParseFromArray(data, bytes)) fuzz::CheckLogits(logits);
  return 0;
}

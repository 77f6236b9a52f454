#include "client/sdk/convert.h"

#include <memory>

#include "grpcpp/support/status.h"

namespace cachalot::client {
namespace {

std::vector<TokenLogprobs> FromProto(const google::protobuf::RepeatedPtrField<v1::TokenLogprobs>& proto) {
  std::vector<TokenLogprobs> all;
  for (const v1::TokenLogprobs& from : proto) {
    TokenLogprobs& entry = all.emplace_back();
    entry.logprob = from.logprob();
    for (int i = 0; i < from.top_ids_size() && i < from.top_logprobs_size(); ++i)
      entry.top.push_back({from.top_ids(i), from.top_logprobs(i)});
  }
  return all;
}

}  // namespace

v1::GenerateRequest ToProto(const GenerateRequest& request) {
  v1::GenerateRequest proto;
  proto.set_request_id(request.request_id);
  if (request.token_ids) {
    proto.mutable_token_ids()->mutable_ids()->Assign(request.token_ids->begin(), request.token_ids->end());
  } else if (request.text) {
    proto.set_text(*request.text);
  } else {
    for (const ChatMessage& message : request.chat) {
      v1::ChatMessage* to = proto.mutable_chat()->add_messages();
      to->set_role(message.role);
      to->set_content(message.content);
    }
  }
  v1::SamplingParams* sampling = proto.mutable_sampling();
  if (request.temperature) sampling->set_temperature(*request.temperature);
  if (request.top_k) sampling->set_top_k(*request.top_k);
  if (request.top_p) sampling->set_top_p(*request.top_p);
  if (request.seed) sampling->set_seed(*request.seed);
  if (request.min_p) sampling->set_min_p(*request.min_p);
  if (request.frequency_penalty) sampling->set_frequency_penalty(*request.frequency_penalty);
  if (request.presence_penalty) sampling->set_presence_penalty(*request.presence_penalty);
  if (request.repetition_penalty) sampling->set_repetition_penalty(*request.repetition_penalty);
  for (const auto& [id, bias] : request.logit_bias) {
    v1::LogitBias* entry = sampling->add_logit_bias();
    entry->set_id(id);
    entry->set_bias(bias);
  }
  if (request.min_tokens) sampling->set_min_tokens(*request.min_tokens);
  if (request.max_tokens) proto.set_max_tokens(*request.max_tokens);
  proto.mutable_stop_token_ids()->Assign(request.stop_token_ids.begin(), request.stop_token_ids.end());
  proto.set_ignore_eos(request.ignore_eos);
  proto.mutable_resume_tokens()->Assign(request.resume_tokens.begin(), request.resume_tokens.end());
  if (request.n) proto.set_n(*request.n);
  for (const std::string& stop : request.stop) proto.add_stop(stop);
  if (request.logprobs) proto.set_logprobs(*request.logprobs);
  if (request.prompt_logprobs) proto.set_prompt_logprobs(*request.prompt_logprobs);
  return proto;
}

Event FromProto(const v1::GenerateResponse& response) {
  Event event;
  switch (response.event_case()) {
    case v1::GenerateResponse::kStarted:
      event.kind = Event::Kind::kStarted;
      event.request_id = response.started().request_id();
      event.seed = response.started().seed();
      event.prompt_tokens = response.started().prompt_tokens();
      break;
    case v1::GenerateResponse::kFinished:
      event.kind = Event::Kind::kFinished;
      event.text = response.finished().text();
      event.finish_reason = response.finished().reason() == v1::FINISH_REASON_LENGTH ? "length" : "stop";
      event.prompt_tokens = response.finished().usage().prompt_tokens();
      event.completion_tokens = response.finished().usage().completion_tokens();
      event.cached_tokens = response.finished().usage().cached_tokens();
      event.choice = response.finished().choice();
      event.matched_stop = response.finished().matched_stop();
      break;
    case v1::GenerateResponse::kPromptLogprobs:
      event.kind = Event::Kind::kPromptLogprobs;
      event.logprobs = FromProto(response.prompt_logprobs().entries());
      break;
    default:
      event.kind = Event::Kind::kTokens;
      event.token_ids.assign(response.tokens().ids().begin(), response.tokens().ids().end());
      event.text = response.tokens().text();
      event.choice = response.tokens().choice();
      event.logprobs = FromProto(response.tokens().logprobs());
  }
  return event;
}

Status CheckUtf8(const google::protobuf::MessageLite& request) {
  const std::unique_ptr<google::protobuf::MessageLite> parsed(request.New());
  if (parsed->ParseFromString(request.SerializeAsString())) return {};
  return {grpc::StatusCode::INVALID_ARGUMENT, "text, chat messages and stop strings must be valid UTF-8"};
}

}  // namespace cachalot::client

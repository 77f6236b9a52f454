#include "client/sdk/client.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstring>

#include "cachalot/v1/admin.grpc.pb.h"
#include "cachalot/v1/generation.grpc.pb.h"

namespace cachalot::client {
namespace {

constexpr int kMaxMessageBytes = 16 << 20;
constexpr auto kUnaryDeadline = std::chrono::seconds(10);
constexpr auto kLogitsDeadline = std::chrono::minutes(10);  // a debugging tool on long prompts

Status FromGrpc(const grpc::Status& status) {
  return {static_cast<int>(status.error_code()), status.error_message()};
}

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

class Stream final : public TokenStream {
 public:
  Stream(v1::Inference::Stub* stub, const GenerateRequest& request) {
    if (request.timeout_ms > 0)
      context_.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(request.timeout_ms));
    reader_ = stub->Generate(&context_, ToProto(request));
  }
  ~Stream() override {
    if (!finished_) {
      context_.TryCancel();
      (void)Finish();
    }
  }

  bool Next(Event* event) override {
    v1::GenerateResponse response;
    if (finished_ || !reader_->Read(&response)) return false;
    *event = FromProto(response);
    return true;
  }
  Status Finish() override {
    if (!finished_) {
      v1::GenerateResponse rest;
      while (reader_->Read(&rest)) {
      }
      status_ = FromGrpc(reader_->Finish());
      finished_ = true;
    }
    return status_;
  }
  void Cancel() override { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
  bool finished_ = false;
  Status status_;
};

/// A request that is wrong before it is sent.
class RefusedStream final : public TokenStream {
 public:
  explicit RefusedStream(Status status) : status_(std::move(status)) {}
  bool Next(Event*) override { return false; }
  Status Finish() override { return status_; }
  void Cancel() override {}

 private:
  const Status status_;
};

}  // namespace

struct Client::Impl {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Inference::Stub> inference;
  std::unique_ptr<v1::Debug::Stub> debug;
};

Client::Client(const std::string& router) : impl_(std::make_unique<Impl>()) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  impl_->channel = grpc::CreateCustomChannel(router, grpc::InsecureChannelCredentials(), arguments);
  impl_->inference = v1::Inference::NewStub(impl_->channel);
  impl_->debug = v1::Debug::NewStub(impl_->channel);
}

Client::~Client() = default;

std::unique_ptr<TokenStream> Client::Generate(const GenerateRequest& request) {
  const int inputs = request.token_ids.has_value() + request.text.has_value() + !request.chat.empty();
  if (inputs != 1)
    return std::make_unique<RefusedStream>(
        Status{grpc::StatusCode::INVALID_ARGUMENT, "give exactly one of token_ids, text and chat, not " +
                                                       std::to_string(inputs)});
  return std::make_unique<Stream>(impl_->inference.get(), request);
}

Status Client::Tokenize(const std::string& text, std::vector<int32_t>* ids) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kUnaryDeadline);
  v1::TokenizeRequest request;
  request.set_text(text);
  v1::TokenizeResponse response;
  const grpc::Status status = impl_->inference->Tokenize(&context, request, &response);
  ids->assign(response.ids().begin(), response.ids().end());
  return FromGrpc(status);
}

Status Client::GetModelInfo(ModelInfo* info) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kUnaryDeadline);
  v1::ModelInfo response;
  const grpc::Status status = impl_->inference->GetModelInfo(&context, {}, &response);
  info->model = response.model();
  info->mode = response.mode();
  info->version = response.version();
  info->vocab_size = response.vocab_size();
  info->max_context_tokens = response.max_context_tokens();
  info->eos_token_ids.assign(response.eos_token_ids().begin(), response.eos_token_ids().end());
  info->has_tokenizer = response.has_tokenizer();
  return FromGrpc(status);
}

Status Client::Logits(const std::vector<int32_t>& ids, int decode, int max_chunk_tokens,
                      const std::function<void(int64_t, int64_t, const float*)>& rows) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kLogitsDeadline);
  v1::LogitsRequest request;
  request.mutable_ids()->Assign(ids.begin(), ids.end());
  request.set_decode(decode);
  request.set_max_chunk_tokens(max_chunk_tokens);
  auto reader = impl_->debug->Logits(&context, request);
  v1::LogitsResponse response;
  std::vector<float> values;
  while (reader->Read(&response)) {
    values.resize(response.values().size() / sizeof(float));
    std::memcpy(values.data(), response.values().data(), values.size() * sizeof(float));
    rows(response.first_row(), response.rows(), values.data());
  }
  const grpc::Status status = reader->Finish();
  if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED)
    return {status.error_code(), "the router does not give logits: run all roles with --debug-logits"};
  return FromGrpc(status);
}

}  // namespace cachalot::client

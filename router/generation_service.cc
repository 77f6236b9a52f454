#include "router/generation_service.h"

#include <cstring>

#include "common/base/log.h"

namespace cachalot {
namespace {

/// Writes the flow's output as public events.
class ResponseSink final : public FlowSink {
 public:
  ResponseSink(const Frontend& frontend, const SequenceState& state,
               rpc::ServerWriter<v1::GenerateResponse>* writer, rpc::Loop* loop,
               Histogram* first_token_seconds)
      : writer_(writer), loop_(loop), first_token_seconds_(first_token_seconds), start_(loop->Now()) {
    started_.set_request_id(state.request_id);
    started_.set_prompt_tokens(static_cast<int32_t>(state.prompt.size()));
    started_.set_seed(state.params.sampling.seed);
    if (frontend.tokenizer()) decoder_.emplace(frontend.tokenizer());
    if (decoder_)  // text of tokens that the client has: only what they hold back matters
      for (int32_t token : state.emitted) decoder_->Push(token);
  }

  rpc::Task<bool> Started() override {
    v1::GenerateResponse response;
    *response.mutable_started() = started_;
    co_return co_await writer_->Write(response);
  }

  rpc::Task<bool> Tokens(std::vector<int32_t> tokens) override {
    if (!any_) first_token_seconds_->Observe(Seconds(loop_->Now() - start_));
    any_ = true;
    v1::GenerateResponse response;
    response.mutable_tokens()->mutable_ids()->Assign(tokens.begin(), tokens.end());
    if (decoder_)
      for (int32_t token : tokens) response.mutable_tokens()->mutable_text()->append(decoder_->Push(token));
    co_return co_await writer_->Write(response);
  }

  rpc::Task<bool> Logits(int64_t, std::vector<float>) override { co_return true; }

  rpc::Task<bool> Finished(const FlowResult& result) {
    v1::GenerateResponse response;
    v1::Finished* finished = response.mutable_finished();
    finished->set_reason(result.finish == FinishReason::kLength ? v1::FINISH_REASON_LENGTH
                                                                : v1::FINISH_REASON_STOP);
    if (decoder_) finished->set_text(decoder_->Finish());
    finished->mutable_usage()->set_prompt_tokens(started_.prompt_tokens());
    finished->mutable_usage()->set_completion_tokens(static_cast<int32_t>(result.output_tokens));
    co_return co_await writer_->Write(response);
  }

 private:
  rpc::ServerWriter<v1::GenerateResponse>* writer_;
  rpc::Loop* loop_;
  Histogram* first_token_seconds_;
  const TimePoint start_;
  v1::Started started_;
  std::optional<StreamDecoder> decoder_;
  bool any_ = false;
};

/// Writes rows of logits, tokens are ignored.
class LogitsSink final : public FlowSink {
 public:
  LogitsSink(int vocab, rpc::ServerWriter<v1::LogitsResponse>* writer) : vocab_(vocab), writer_(writer) {}

  rpc::Task<bool> Started() override { co_return true; }
  rpc::Task<bool> Tokens(std::vector<int32_t>) override { co_return true; }
  rpc::Task<bool> Logits(int64_t first_row, std::vector<float> rows) override {
    v1::LogitsResponse response;
    response.set_first_row(first_row);
    response.set_rows(static_cast<int64_t>(rows.size()) / vocab_);
    response.set_values(rows.data(), rows.size() * sizeof(float));
    co_return co_await writer_->Write(response);
  }

 private:
  const int vocab_;
  rpc::ServerWriter<v1::LogitsResponse>* writer_;
};

}  // namespace

GenerationService::GenerationService(rpc::Server* server, rpc::Loop* loop, FlowContext* flow,
                                     MetricsRegistry* metrics, bool debug_logits)
    : loop_(loop),
      flow_(flow),
      requests_(
          metrics->AddCounter("cachalot_router_requests_total", "Generate requests that were admitted")),
      failures_(metrics->AddCounter("cachalot_router_failures_total",
                                    "Admitted requests that ended with an error")),
      cancelled_(
          metrics->AddCounter("cachalot_router_cancelled_total", "Admitted requests that the client left")),
      tokens_(metrics->AddCounter("cachalot_router_tokens_total", "Output tokens sent")),
      running_(metrics->AddGauge("cachalot_router_running_requests", "Requests in progress")),
      first_token_seconds_(metrics->AddHistogram("cachalot_router_first_token_seconds",
                                                 "Arrival to first token",
                                                 ExponentialBuckets(0.0005, 2, 18))),
      request_seconds_(metrics->AddHistogram("cachalot_router_request_seconds", "Arrival to end",
                                             ExponentialBuckets(0.001, 2, 18))) {
  using Service = v1::Inference::AsyncService;
  server->ServerStreaming(
      loop, &inference_, &Service::RequestGenerate,
      [this](rpc::ServerCall& call, const v1::GenerateRequest& request,
             rpc::ServerWriter<v1::GenerateResponse>& writer) { return Generate(call, request, writer); });
  server->Unary(loop, &inference_, &Service::RequestTokenize,
                [this](rpc::ServerCall&, const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
                  return Tokenize(request, response);
                });
  server->Unary(loop, &inference_, &Service::RequestGetModelInfo,
                [this](rpc::ServerCall&, const v1::GetModelInfoRequest&, v1::ModelInfo* response) {
                  return GetModelInfo(response);
                });
  if (debug_logits)
    server->ServerStreaming(
        loop, &debug_, &v1::Debug::AsyncService::RequestLogits,
        [this](rpc::ServerCall& call, const v1::LogitsRequest& request,
               rpc::ServerWriter<v1::LogitsResponse>& writer) { return Logits(call, request, writer); });
}

void GenerationService::Serve(std::shared_ptr<const Frontend> frontend) {
  loop_->Post([this, frontend = std::move(frontend)] { frontend_ = frontend; });
}

void GenerationService::Drain() {
  loop_->Post([this] { draining_ = true; });
}

Status GenerationService::Ready() const {
  if (draining_) return Unavailable("this router is draining: use another");
  if (!frontend_) return Unavailable("this router has not reached its workers yet: try again");
  return OkStatus();
}

rpc::Task<Status> GenerationService::Generate(rpc::ServerCall& call, const v1::GenerateRequest& request,
                                              rpc::ServerWriter<v1::GenerateResponse>& writer) {
  CO_RETURN_IF_ERROR(Ready());
  const auto frontend = frontend_;
  const TimePoint start = loop_->Now();
  CO_ASSIGN_OR_RETURN(SequenceState state, frontend->Admit(request));
  requests_.Add();
  running_.Add(1);
  const std::string request_id = state.request_id;
  const auto before = static_cast<int64_t>(state.emitted.size());
  ResponseSink sink(*frontend, state, &writer, loop_, &first_token_seconds_);
  StatusOr<FlowResult> result =
      co_await RunRequest(flow_, std::move(state), &sink, {}, &call.scope(), call.deadline());
  running_.Add(-1);
  Count(request_id, result, start);
  CO_RETURN_IF_ERROR(result.status());
  tokens_.Add(static_cast<double>(result->output_tokens - before));
  (void)co_await sink.Finished(*result);
  co_return OkStatus();
}

void GenerationService::Count(const std::string& request_id, const StatusOr<FlowResult>& result,
                              TimePoint start) {
  const double seconds = Seconds(loop_->Now() - start);
  request_seconds_.Observe(seconds);
  if (result.ok()) {
    LogInfo("[" + request_id + "] " + std::to_string(result->output_tokens) + " tokens in " +
            std::to_string(seconds) + " s");
  } else if (result.status().code() == StatusCode::kCancelled) {
    cancelled_.Add();
    LogInfo("[" + request_id + "] cancelled by the client after " + std::to_string(seconds) + " s");
  } else {
    failures_.Add();
    LogWarning("[" + request_id + "] failed: " + StatusMessage(result.status()));
  }
}

rpc::Task<Status> GenerationService::Tokenize(const v1::TokenizeRequest& request,
                                              v1::TokenizeResponse* response) {
  CO_RETURN_IF_ERROR(Ready());
  if (request.input_case() == v1::TokenizeRequest::INPUT_NOT_SET)
    co_return InvalidArgument("no input: wanted text or chat");
  auto ids =
      request.has_chat() ? frontend_->EncodeChat(request.chat()) : frontend_->EncodeText(request.text());
  CO_RETURN_IF_ERROR(ids.status());
  response->mutable_ids()->Assign(ids->begin(), ids->end());
  co_return OkStatus();
}

rpc::Task<Status> GenerationService::GetModelInfo(v1::ModelInfo* response) {
  CO_RETURN_IF_ERROR(Ready());
  *response = frontend_->info();
  co_return OkStatus();
}

rpc::Task<Status> GenerationService::Logits(rpc::ServerCall& call, const v1::LogitsRequest& request,
                                            rpc::ServerWriter<v1::LogitsResponse>& writer) {
  CO_RETURN_IF_ERROR(Ready());
  const auto frontend = frontend_;
  const int64_t count = request.ids_size(), decode = request.decode();
  if (decode >= count)
    co_return InvalidArgument("decode is " + std::to_string(decode) + " of " + std::to_string(count) +
                              " ids: at least one must be the prompt");
  SequenceState state;
  state.request_id = "logits";
  state.prompt.assign(request.ids().begin(), request.ids().begin() + (count - decode));
  state.forced.assign(request.ids().begin() + (count - decode), request.ids().end());
  state.forced.push_back(0);  // what comes out behind the last id is not wanted
  state.want_logits = true;
  state.params.max_tokens = static_cast<int>(decode) + 1;
  state.params.ignore_eos = true;
  CO_RETURN_IF_ERROR(cachalot::Admit(state, frontend->limits()));
  LogitsSink sink(frontend->limits().vocab_size, &writer);
  PrefillOptions options;
  options.max_chunk_tokens = request.max_chunk_tokens();
  auto result = co_await RunRequest(flow_, std::move(state), &sink, options, &call.scope(), call.deadline());
  co_return result.status();
}

}  // namespace cachalot

#include "router/generation_service.h"

#include <cstring>

#include "common/base/log.h"
#include "common/base/seconds_text.h"

namespace cachalot {
namespace {

constexpr size_t kLongText = 64 << 10;  // bytes that take some milliseconds, tens at worst
constexpr size_t kMaxLongTexts = 32;    // of up to a message's 16 MiB

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

/// Whether the tokens that the client has are the whole output.
FinishReason EndOf(const SequenceState& state, const v1::ModelInfo& info) {
  if (state.emitted.empty()) return FinishReason::kNone;
  const auto& eos = info.eos_token_ids();
  return FinishAfter(state.params, {eos.data(), static_cast<size_t>(eos.size())}, state.emitted.back(),
                     static_cast<int64_t>(state.emitted.size()) - 1);
}

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
      long_texts_(metrics->AddCounter("cachalot_router_long_texts_total",
                                      "Texts that were tokenized away from the router's loop")),
      running_(metrics->AddGauge("cachalot_router_running_requests", "Requests in progress")),
      first_token_seconds_(metrics->AddHistogram("cachalot_router_first_token_seconds",
                                                 "Arrival to first token",
                                                 ExponentialBuckets(0.0005, 2, 18))),
      request_seconds_(metrics->AddHistogram("cachalot_router_request_seconds", "Arrival to end",
                                             ExponentialBuckets(0.001, 2, 18))),
      tokenizing_(loop, "tokenizing", kMaxLongTexts) {
  flow_->preemptions =
      &metrics->AddCounter("cachalot_router_preemptions_total",
                           "Times that requests gave up their KV to others and went on later");
  flow_->prefill_retries =
      &metrics->AddCounter("cachalot_router_prefill_retries_total",
                           "Prefills that failed and were tried again under the same lease");
  flow_->lease_retries =
      &metrics->AddCounter("cachalot_router_lease_retries_total",
                           "Times that a request got no lease and another decode worker was asked");
  flow_->decode_failovers = &metrics->AddCounter("cachalot_router_decode_failovers_total",
                                                 "Times that requests went on at another pair of workers");
  using Service = v1::Inference::AsyncService;
  server->ServerStreaming(
      loop, &inference_, &Service::RequestGenerate,
      [this](rpc::ServerCall& call, const v1::GenerateRequest& request,
             rpc::ServerWriter<v1::GenerateResponse>& writer) { return Generate(call, request, writer); });
  server->Unary(loop, &inference_, &Service::RequestTokenize,
                [this](rpc::ServerCall& call, const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
                  return Tokenize(call, request, response);
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
  std::vector<int32_t> prompt;
  if (request.has_text() || request.has_chat()) {
    CO_RETURN_IF_ERROR(frontend->CheckMessages(request.chat()));
    PromptText text = request.has_chat() ? PromptText::Of(request.chat()) : PromptText::Of(request.text());
    CO_RETURN_IF_ERROR(frontend->CheckLength(text));
    rpc::Task<StatusOr<std::vector<int32_t>>> encoding = Encode(frontend, std::move(text), &call.scope());
    auto encoded = co_await std::move(encoding);
    CO_RETURN_IF_ERROR(encoded.status());
    prompt = std::move(*encoded);
  }
  CO_ASSIGN_OR_RETURN(SequenceState state, frontend->Admit(request, std::move(prompt)));
  CO_ASSIGN_OR_RETURN(OutputOptions options, frontend->AdmitOutput(request));
  requests_.Add();
  running_.Add(1);
  v1::Started started;
  started.set_request_id(state.request_id);
  started.set_prompt_tokens(static_cast<int32_t>(state.prompt.size()));
  started.set_seed(state.params.sampling.seed);
  started.set_compat(frontend->compat());
  ResponseStream stream(loop_, &writer, options.n, std::move(started), &first_token_seconds_);
  Choices choices{&stream, frontend.get(), std::move(options), call.deadline()};
  const rpc::CancelCallback gone(&call.scope(), [&choices] { choices.scope.Cancel(); });
  rpc::TaskGroup others(loop_);
  for (int i = 1; i < choices.options.n; ++i)
    others.Spawn(RunChoice(&choices, state, i), "choice of a request");
  co_await RunChoice(&choices, state, 0);
  co_await others.JoinAll();
  running_.Add(-1);
  tokens_.Add(static_cast<double>(choices.tokens));
  Count(state.request_id, choices.status, choices.tokens, start);
  co_return choices.status;
}

/// Choice `i` is a request of its own but for its seed. The first that fails takes the others along.
rpc::Task<void> GenerationService::RunChoice(Choices* choices, SequenceState state, int i) {
  state.params.sampling.seed += static_cast<uint64_t>(i);
  if (i > 0) {
    state.request_id += "/" + std::to_string(i);
    state.params.prompt_logprobs = kNoLogprobs;  // the same for all
  }
  const auto prompt_tokens = static_cast<int>(state.prompt.size());
  OutputText text(choices->frontend->tokenizer(), choices->options.stop, state.params.sampling.min_tokens);
  ChoiceSink sink(choices->stream, i, std::move(text), state.emitted);
  const int64_t before = sink.tokens();
  if (frontend_.get() != choices->frontend && choices->status.ok()) {
    choices->status = ChangedModel();
    choices->stream->Abandon();
    choices->scope.Cancel();
  }
  // The client may have all of an output whose end it has not heard of.
  const FinishReason end = sink.Complete() ? FinishReason::kStop : EndOf(state, choices->frontend->info());
  StatusOr<FlowResult> result = FlowResult{end, before};
  if (end != FinishReason::kNone) {
    (void)co_await sink.Started();
  } else {
    result = co_await RunRequest(flow_, std::move(state), &sink, {}, &choices->scope, choices->deadline,
                                 &choices->siblings);
  }
  choices->tokens += sink.tokens() - before;
  if (result.ok()) {
    // Resumed requests have output tokens in their context too.
    const auto cached_tokens = static_cast<int>(std::min<int64_t>(result->cached_tokens, prompt_tokens));
    (void)co_await sink.Finished(result->finish, prompt_tokens, cached_tokens);
  } else if (choices->status.ok()) {
    choices->status = result.status();
    choices->stream->Abandon();
    choices->scope.Cancel();
  }
}

void GenerationService::Count(const std::string& request_id, const Status& status, int64_t tokens,
                              TimePoint start) {
  const Duration taken = loop_->Now() - start;
  request_seconds_.Observe(Seconds(taken));
  if (status.ok()) {
    LogInfo("[" + request_id + "] " + std::to_string(tokens) + " tokens in " + SecondsText(taken));
  } else if (status.code() == StatusCode::kCancelled) {
    cancelled_.Add();
    LogInfo("[" + request_id + "] cancelled by the client after " + SecondsText(taken));
  } else {
    failures_.Add();
    LogWarning("[" + request_id + "] failed: " + StatusMessage(status));
  }
}

/// A long text takes seconds, and meanwhile the loop has heartbeats to send.
rpc::Task<StatusOr<std::vector<int32_t>>> GenerationService::Encode(std::shared_ptr<const Frontend> frontend,
                                                                    PromptText text, rpc::CancelScope* scope) {
  if (text.Work() < kLongText) co_return frontend->Encode(text);
  long_texts_.Add();
  const auto input = std::make_shared<const PromptText>(std::move(text));
  const auto ids = std::make_shared<StatusOr<std::vector<int32_t>>>(Internal("not tokenized"));
  std::function<void()> work = [=] { *ids = frontend->Encode(*input); };
  rpc::Task<Status> running = tokenizing_.Run(std::move(work), scope);
  const Status done = co_await std::move(running);
  CO_RETURN_IF_ERROR(done);
  co_return std::move(*ids);
}

rpc::Task<Status> GenerationService::Tokenize(rpc::ServerCall& call, const v1::TokenizeRequest& request,
                                              v1::TokenizeResponse* response) {
  CO_RETURN_IF_ERROR(Ready());
  if (request.input_case() == v1::TokenizeRequest::INPUT_NOT_SET)
    co_return InvalidArgument("no input: wanted text or chat");
  CO_RETURN_IF_ERROR(frontend_->CheckMessages(request.chat()));
  PromptText text = request.has_chat() ? PromptText::Of(request.chat()) : PromptText::Of(request.text());
  rpc::Task<StatusOr<std::vector<int32_t>>> encoding = Encode(frontend_, std::move(text), &call.scope());
  auto ids = co_await std::move(encoding);
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
  CO_ASSIGN_OR_RETURN(SequenceState state, frontend->AdmitLogits(request));
  LogitsSink sink(frontend->limits().vocab_size, &writer);
  PrefillOptions options;
  options.max_chunk_tokens = request.max_chunk_tokens();
  auto result = co_await RunRequest(flow_, std::move(state), &sink, options, &call.scope(), call.deadline());
  co_return result.status();
}

}  // namespace cachalot

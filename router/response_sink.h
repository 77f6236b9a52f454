#pragma once
// The flows' output as public events: one stream for a request, one sink for each of its choices.

#include <string>
#include <vector>

#include "cachalot/v1/generation.pb.h"
#include "common/metrics/registry.h"
#include "common/rpc/server_call.h"
#include "router/output_text.h"
#include "router/request_flow.h"

namespace cachalot {

/// What the choices of one request share. Loop thread only.
class ResponseStream {
 public:
  using Writer = rpc::ServerWriter<v1::GenerateResponse>;
  ResponseStream(rpc::Loop* loop, Writer* writer, int choices, v1::Started started,
                 Histogram* first_token_seconds)
      : loop_(loop),
        writer_(writer),
        choices_(choices),
        all_started_(loop),
        free_(loop),
        first_token_seconds_(first_token_seconds),
        start_(loop->Now()),
        started_(std::move(started)) {}

  /// For each choice, once it holds its KV. Returns when all do: a client hears of a request that is admitted
  /// as a whole, and its choices reach the prefill worker together. False: the request is over.
  rpc::Task<bool> Start();
  /// A choice has failed: nobody waits for it.
  void Abandon();
  /// One after the other: the choices' messages come as they may. False: the client is gone.
  rpc::Task<bool> Write(v1::GenerateResponse response);
  void SawToken();

 private:
  rpc::Loop* loop_;
  Writer* writer_;
  const int choices_;
  int holding_ = 0;  // choices that called Start
  rpc::Event all_started_;
  bool busy_ = false;
  rpc::Event free_;
  Histogram* first_token_seconds_;
  const TimePoint start_;
  const v1::Started started_;
  bool abandoned_ = false, any_token_ = false;
};

/// One choice of a request.
class ChoiceSink final : public FlowSink {
 public:
  /// `emitted` are output tokens that the client has: of their text only what is held back matters.
  ChoiceSink(ResponseStream* stream, int choice, OutputText text, const std::vector<int32_t>& emitted);

  rpc::Task<bool> Started() override;
  rpc::Task<bool> Tokens(std::vector<int32_t> tokens) override;
  rpc::Task<bool> Logits(int64_t, std::vector<float>) override { co_return true; }
  void Logprobs(std::vector<TokenLogprobs> of_next_tokens) override { logprobs_ = std::move(of_next_tokens); }
  rpc::Task<bool> PromptLogprobs(int64_t first, std::vector<TokenLogprobs> entries) override;
  bool Complete() const override { return text_.stopped(); }

  rpc::Task<bool> Finished(FinishReason reason, int prompt_tokens, int cached_tokens);
  /// Output tokens, those that the client had included.
  int64_t tokens() const { return text_.tokens(); }

 private:
  ResponseStream* stream_;
  const int choice_;
  OutputText text_;
  std::vector<TokenLogprobs> logprobs_;  // of the tokens that come next
};

}  // namespace cachalot

#include "client/embedded/run.h"

#include <optional>

#include "decode_worker/decode_flow.h"
#include "prefill_worker/prefill_flow.h"

namespace cachalot {
namespace {

/// Hands the finished KV to the caller.
class Handover final : public PrefillSink {
 public:
  explicit Handover(const RunOptions& options) : options_(options) {}

  void OnChunk(const SequenceKv&, int64_t, int64_t, std::span<const float> logits) override {
    if (options_.on_logits && !logits.empty()) options_.on_logits(logits);
  }
  void OnPromptLogprobs(int64_t, std::vector<TokenLogprobs> entries) override {
    if (options_.on_prompt_logprobs) options_.on_prompt_logprobs(std::move(entries));
  }
  void OnFirstToken(OutputToken first, SequenceKv kv) override {
    first_ = std::move(first);
    kv_ = std::move(kv);
  }
  void OnError(const Status& status) override { status_ = status; }

  Status status_;
  std::optional<OutputToken> first_;
  SequenceKv kv_;

 private:
  const RunOptions& options_;
};

/// False: the run is over.
bool Tell(const RunOptions& options, int64_t index, int32_t token, FinishReason finish,
          const std::optional<TokenLogprobs>& logprobs) {
  if (options.on_logprobs && logprobs) options.on_logprobs(index, *logprobs);
  if (options.on_token) options.on_token(index, token, finish);
  return finish == FinishReason::kNone && !(options.complete && options.complete());
}

}  // namespace

Status RunEmbedded(EmbeddedModel& embedded, const SequenceState& state, const RunOptions& options) {
  ASSIGN_OR_RETURN(SequenceKv kv, embedded.pools().Reserve(state.MaxTokens()));
  auto handover = std::make_shared<Handover>(options);
  PrefillFlow prefill(embedded.model(), embedded.experts(), options.max_chunk_tokens);
  prefill.Submit({1, state, std::move(kv), 0, handover});
  while (prefill.Step()) {
  }
  RETURN_IF_ERROR(handover->status_);
  const OutputToken& first = *handover->first_;
  const auto index = static_cast<int64_t>(state.emitted.size());
  if (!Tell(options, index, first.token, first.finish, first.logprobs)) return OkStatus();

  const SteadyClock clock;
  DecodeFlow decode(embedded.model(), embedded.experts(), clock, {});
  decode.Join(1, state, std::move(handover->kv_), first.token);
  std::vector<TokenOut> out;
  while (decode.running() > 0) {
    out.clear();
    decode.Step(out);
    for (const TokenOut& result : out) {
      RETURN_IF_ERROR(result.error);
      if (options.on_logits && !result.logits.empty()) options.on_logits(result.logits);
      if (!Tell(options, result.index, result.token, result.finish, result.logprobs)) return OkStatus();
      decode.Acknowledge(result.id, result.index + 1);
    }
  }
  return OkStatus();
}

}  // namespace cachalot

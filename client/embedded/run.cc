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
  void OnFirstToken(int32_t token, FinishReason finish, SequenceKv kv) override {
    token_ = token;
    finish_ = finish;
    kv_ = std::move(kv);
  }
  void OnError(const Status& status) override { status_ = status; }

  Status status_;
  std::optional<int32_t> token_;
  FinishReason finish_ = FinishReason::kNone;
  SequenceKv kv_;

 private:
  const RunOptions& options_;
};

}  // namespace

Status RunEmbedded(EmbeddedModel& embedded, const SequenceState& state, const RunOptions& options) {
  ASSIGN_OR_RETURN(SequenceKv kv, embedded.pools().Reserve(state.MaxTokens()));
  auto handover = std::make_shared<Handover>(options);
  PrefillFlow prefill(embedded.model(), embedded.experts(), options.max_chunk_tokens);
  prefill.Submit({1, state, std::move(kv), 0, handover});
  while (prefill.Step()) {
  }
  RETURN_IF_ERROR(handover->status_);
  if (options.on_token) options.on_token(static_cast<int64_t>(state.emitted.size()), *handover->token_, handover->finish_);
  if (handover->finish_ != FinishReason::kNone) return OkStatus();

  const SteadyClock clock;
  DecodeFlow decode(embedded.model(), embedded.experts(), clock, {});
  decode.Join(1, state, std::move(handover->kv_), *handover->token_);
  std::vector<TokenOut> out;
  while (decode.running() > 0) {
    out.clear();
    decode.Step(out);
    for (const TokenOut& result : out) {
      RETURN_IF_ERROR(result.error);
      if (options.on_logits && !result.logits.empty()) options.on_logits(result.logits);
      if (options.on_token) options.on_token(result.index, result.token, result.finish);
      decode.Acknowledge(result.id, result.index + 1);
    }
  }
  return OkStatus();
}

}  // namespace cachalot

#include "client/embedded/run.h"

#include <optional>

#include "common/base/check.h"
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
  void OnCached(int64_t tokens) override {
    if (options_.on_cached) options_.on_cached(tokens);
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

/// False: the sequence is over.
bool Tell(const RunOptions& options, int64_t index, int32_t token, FinishReason finish,
          const std::optional<TokenLogprobs>& logprobs) {
  if (options.on_logprobs && logprobs) options.on_logprobs(index, *logprobs);
  if (options.on_token) options.on_token(index, token, finish);
  return finish == FinishReason::kNone && !(options.complete && options.complete());
}

}  // namespace

Status RunEmbedded(EmbeddedModel& embedded, const SequenceState& state, const RunOptions& options) {
  return RunEmbedded(embedded, std::span(&state, 1), std::span(&options, 1));
}

Status RunEmbedded(EmbeddedModel& embedded, std::span<const SequenceState> states,
                   std::span<const RunOptions> options) {
  CHECK(states.size() == options.size());
  PrefillFlow prefill(embedded.model(), embedded.experts(), options.front().max_chunk_tokens,
                      embedded.prefixes());
  std::vector<std::shared_ptr<Handover>> handovers;
  for (size_t i = 0; i < states.size(); ++i) {
    RETURN_IF_ERROR(CheckHolds(embedded.pools(), states[i]));
    ASSIGN_OR_RETURN(SequenceKv kv, embedded.pools().Reserve(states[i].MaxTokens()));
    handovers.push_back(std::make_shared<Handover>(options[i]));
    prefill.Submit({i, states[i], std::move(kv), 0, handovers[i]});
  }
  while (prefill.Step()) {
  }

  const SteadyClock clock;
  DecodeFlow decode(embedded.model(), embedded.experts(), clock, {});
  for (size_t i = 0; i < states.size(); ++i) {
    RETURN_IF_ERROR(handovers[i]->status_);
    const OutputToken& first = *handovers[i]->first_;
    const auto index = static_cast<int64_t>(states[i].emitted.size());
    if (Tell(options[i], index, first.token, first.finish, first.logprobs))
      decode.Join(i, states[i], std::move(handovers[i]->kv_), first.token);
  }
  std::vector<TokenOut> out;
  while (decode.running() > 0) {
    out.clear();
    decode.Step(out);
    for (const TokenOut& result : out) {
      RETURN_IF_ERROR(result.error);
      const RunOptions& own = options[result.id];
      if (own.on_logits && !result.logits.empty()) own.on_logits(result.logits);
      if (Tell(own, result.index, result.token, result.finish, result.logprobs)) {
        decode.Acknowledge(result.id, result.index + 1);
      } else {
        decode.Remove(result.id);
      }
    }
  }
  return OkStatus();
}

}  // namespace cachalot

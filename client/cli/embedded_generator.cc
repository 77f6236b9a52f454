#include <chrono>

#include "client/cli/generator.h"
#include "client/embedded/run.h"
#include "common/base/ids.h"
#include "common/tokenizer/chat_format.h"
#include "common/tokenizer/stream_decoder.h"

namespace cachalot::cli {
namespace {

double SecondsSince(TimePoint start) { return Seconds(std::chrono::steady_clock::now() - start); }

class EmbeddedGenerator final : public Generator {
 public:
  explicit EmbeddedGenerator(std::unique_ptr<EmbeddedModel> embedded) : embedded_(std::move(embedded)) {}

  StatusOr<GenerationResult> Generate(const Prompt& prompt, const GenerationOptions& options,
                                      const std::function<void(const std::string&)>& on_text) override {
    SequenceState state;
    ASSIGN_OR_RETURN(state.prompt, Encode(prompt));
    state.params = {{options.temperature, options.top_k, options.top_p, options.seed.value_or(RandomId())},
                    options.max_tokens, options.ignore_eos, options.stop_token_ids};
    RETURN_IF_ERROR(Check(state));
    GenerationResult result;
    result.prompt_tokens = static_cast<int>(state.prompt.size());
    std::optional<StreamDecoder> decoder;
    if (embedded_->tokenizer()) {
      decoder.emplace(embedded_->tokenizer());
      result.text.emplace();
    }
    const auto show = [&](const std::string& text) {
      *result.text += text;
      if (on_text && !text.empty()) on_text(text);
    };
    const TimePoint start = std::chrono::steady_clock::now();
    RunOptions run;
    run.on_token = [&](int64_t, int32_t token, FinishReason finish) {
      if (result.token_ids.empty()) result.first_token_seconds = SecondsSince(start);
      result.token_ids.push_back(token);
      result.finish_reason = finish == FinishReason::kLength ? "length" : "stop";
      if (decoder) show(decoder->Push(token));
    };
    RETURN_IF_ERROR(RunEmbedded(*embedded_, state, run));
    if (decoder) show(decoder->Finish());
    result.total_seconds = SecondsSince(start);
    return result;
  }

  StatusOr<LogitsResult> Logits(const std::vector<int32_t>& ids, int decode, int chunk) override {
    if (decode >= static_cast<int>(ids.size()))
      return InvalidArgument("--decode " + std::to_string(decode) + ": at least one of the " +
                             std::to_string(ids.size()) + " ids must be the prompt");
    SequenceState state;
    state.prompt.assign(ids.begin(), ids.end() - decode);
    state.forced.assign(ids.end() - decode, ids.end());
    state.forced.push_back(0);  // what comes out behind the last id is not wanted
    state.want_logits = true;
    state.params.max_tokens = decode + 1;
    state.params.ignore_eos = true;
    RETURN_IF_ERROR(Check(state));
    LogitsResult result;
    result.vocab = embedded_->config().vocab_size;
    RunOptions run;
    if (chunk > 0) run.max_chunk_tokens = chunk;
    run.on_logits = [&](std::span<const float> rows) {
      result.values.insert(result.values.end(), rows.begin(), rows.end());
    };
    RETURN_IF_ERROR(RunEmbedded(*embedded_, state, run));
    return result;
  }

 private:
  StatusOr<std::vector<int32_t>> Encode(const Prompt& prompt) const {
    if (prompt.ids) return *prompt.ids;
    const Tokenizer* tokenizer = embedded_->tokenizer();
    if (!tokenizer) return FailedPrecondition("the checkpoint has no tokenizer.json: give --ids instead of text");
    if (prompt.text) return tokenizer->Encode(*prompt.text, false);
    std::vector<ChatMessage> messages;
    for (const ChatTurn& turn : prompt.chat) messages.push_back({turn.role, turn.content});
    return EncodeChat(*tokenizer, messages);
  }

  Status Check(const SequenceState& state) const {
    const ModelConfig& config = embedded_->config();
    if (state.prompt.empty()) return InvalidArgument("the prompt has no tokens");
    for (const auto* ids : {&state.prompt, &state.forced})
      for (int32_t id : *ids)
        if (id < 0 || id >= config.vocab_size)
          return InvalidArgument("token id " + std::to_string(id) + " is not in [0, " +
                                 std::to_string(config.vocab_size) + ")");
    if (state.MaxTokens() > config.max_position_embeddings)
      return OutOfRange("prompt and output of " + std::to_string(state.MaxTokens()) +
                        " tokens exceed the context of " + std::to_string(config.max_position_embeddings));
    return ValidateSamplingParams(state.params.sampling);
  }

  std::unique_ptr<EmbeddedModel> embedded_;
};

}  // namespace

StatusOr<std::unique_ptr<Generator>> MakeEmbeddedGenerator(const Target& target) {
  EmbeddedOptions options;
  options.model = target.model;
  options.kernels = target.kernels;
  options.mode = target.mode;
  options.threads = target.threads;
  options.max_sequences = 1;
  options.kv_tokens = 1 << 20;  // touched only where used
  ASSIGN_OR_RETURN(auto embedded, EmbeddedModel::Load(options));
  return std::unique_ptr<Generator>(std::make_unique<EmbeddedGenerator>(std::move(embedded)));
}

}  // namespace cachalot::cli

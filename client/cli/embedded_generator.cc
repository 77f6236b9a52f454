#include <chrono>
#include <deque>

#include "client/cli/generator.h"
#include "client/embedded/run.h"
#include "common/base/ids.h"
#include "common/tokenizer/chat_format.h"
#include "router/output_text.h"

namespace cachalot::cli {
namespace {

double SecondsSince(TimePoint start) { return Seconds(std::chrono::steady_clock::now() - start); }

class EmbeddedGenerator final : public Generator {
 public:
  explicit EmbeddedGenerator(std::unique_ptr<EmbeddedModel> embedded) : embedded_(std::move(embedded)) {}

  StatusOr<GenerationResult> Generate(const Prompt& prompt, const GenerationOptions& options,
                                      const OnText& on_text) override {
    SequenceState state;
    ASSIGN_OR_RETURN(state.prompt, Encode(prompt));
    state.params = ParamsOf(options);
    RETURN_IF_ERROR(Check(state));
    const OutputOptions output{options.n, options.stop};
    RETURN_IF_ERROR(ValidateOutputOptions(output, embedded_->tokenizer() != nullptr));
    GenerationResult result;
    result.prompt_tokens = static_cast<int>(state.prompt.size());
    result.others.resize(options.n - 1);
    const TimePoint start = std::chrono::steady_clock::now();
    std::vector<SequenceState> states;
    std::deque<OutputText> texts;
    std::vector<RunOptions> runs;
    Status shown;
    const Show show = [&](const std::string& piece) {
      if (on_text && shown.ok()) shown = on_text(piece);
    };
    for (int i = 0; i < options.n; ++i) {
      OutputText& text = texts.emplace_back(embedded_->tokenizer(), output.stop, state.params.sampling.min_tokens);
      states.push_back(state);
      runs.push_back(RunOf(start, i == 0 ? show : nullptr, &text, &result, &result.choice(i), &shown));
      ++state.params.sampling.seed;
      state.params.prompt_logprobs = kNoLogprobs;
    }
    RETURN_IF_ERROR(RunEmbedded(*embedded_, states, runs));
    for (int i = 0; i < options.n; ++i) {
      Take(texts[i].Finish(), i == 0 ? show : nullptr, &result.choice(i));
      result.choice(i).matched_stop = texts[i].matched_stop();
    }
    RETURN_IF_ERROR(shown);
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
  static GenerationParams ParamsOf(const GenerationOptions& options) {
    GenerationParams params;
    SamplingParams& sampling = params.sampling;
    sampling = {options.temperature, options.top_k, options.top_p, options.seed ? *options.seed : RandomId()};
    sampling.min_p = options.min_p;
    sampling.frequency_penalty = options.frequency_penalty;
    sampling.presence_penalty = options.presence_penalty;
    sampling.repetition_penalty = options.repetition_penalty;
    for (const auto& [id, bias] : options.logit_bias) sampling.logit_bias.push_back({id, bias});
    sampling.min_tokens = options.min_tokens;
    sampling.logprobs = options.logprobs.value_or(kNoLogprobs);
    params.max_tokens = options.max_tokens;
    params.ignore_eos = options.ignore_eos;
    params.stop_token_ids = options.stop_token_ids;
    params.prompt_logprobs = options.prompt_logprobs.value_or(kNoLogprobs);
    return params;
  }

  static client::TokenLogprobs Public(const TokenLogprobs& from) {
    client::TokenLogprobs to{from.chosen, {}};
    for (const TokenLogprob& entry : from.top) to.top.push_back({entry.id, entry.logprob});
    return to;
  }

  using Show = std::function<void(const std::string&)>;

  static void Take(const std::string& piece, const Show& show, Choice* choice) {
    if (choice->text) *choice->text += piece;
    if (show && !piece.empty()) show(piece);
  }

  /// How one output's tokens reach `choice`, until `shown` is no longer OK. What it is given must outlive the run.
  static RunOptions RunOf(TimePoint start, const Show& show, OutputText* text, GenerationResult* result,
                          Choice* choice, const Status* shown) {
    if (text->has_text()) choice->text.emplace();
    RunOptions run;
    run.on_prompt_logprobs = [result](const std::vector<TokenLogprobs>& entries) {
      for (const TokenLogprobs& entry : entries) result->prompt_logprobs.push_back(Public(entry));
    };
    run.on_logprobs = [choice](int64_t, const TokenLogprobs& logprobs) {
      choice->logprobs.push_back(Public(logprobs));
    };
    run.on_token = [=](int64_t, int32_t token, FinishReason finish) {
      if (result->first_token_seconds == 0) result->first_token_seconds = SecondsSince(start);
      choice->token_ids.push_back(token);
      choice->finish_reason = finish == FinishReason::kLength ? "length" : "stop";
      Take(text->Push(token), show, choice);
      if (text->stopped()) choice->finish_reason = "stop";
    };
    run.on_cached = [choice](int64_t tokens) { choice->cached_tokens = tokens; };
    run.complete = [text, shown] { return text->stopped() || !shown->ok(); };
    return run;
  }

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
    return ValidateGenerationParams(state.params, config.vocab_size);
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
  options.prefix_cache.bytes = target.prefix_cache_bytes;
  options.max_sequences = kMaxChoices;
  options.kv_tokens = 1 << 20;  // touched only where used
  ASSIGN_OR_RETURN(auto embedded, EmbeddedModel::Load(options));
  return std::unique_ptr<Generator>(std::make_unique<EmbeddedGenerator>(std::move(embedded)));
}

}  // namespace cachalot::cli

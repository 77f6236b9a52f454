#include <algorithm>
#include <chrono>

#include "client/cli/generator.h"
#include "client/cli/logits_rows.h"
#include "client/sdk/client.h"
#include "common/base/time.h"

namespace cachalot::cli {
namespace {

Status FromSdk(const client::Status& status) {
  return status.ok() ? OkStatus() : MakeStatus(static_cast<StatusCode>(status.code), status.message);
}

double SecondsSince(TimePoint start) { return Seconds(std::chrono::steady_clock::now() - start); }

class RouterGenerator final : public Generator {
 public:
  explicit RouterGenerator(const std::string& router) : client_(router) {}

  StatusOr<GenerationResult> Generate(const Prompt& prompt, const GenerationOptions& options,
                                      const OnText& on_text) override {
    client::ModelInfo info;
    RETURN_IF_ERROR(FromSdk(client_.GetModelInfo(&info)));
    client::GenerateRequest request;
    request.token_ids = prompt.ids;
    request.text = prompt.text;
    for (const ChatTurn& turn : prompt.chat) request.chat.push_back({turn.role, turn.content});
    request.max_tokens = options.max_tokens;
    request.temperature = options.temperature;
    request.top_k = options.top_k;
    request.top_p = options.top_p;
    request.seed = options.seed;
    request.ignore_eos = options.ignore_eos;
    request.stop_token_ids = options.stop_token_ids;
    request.min_p = options.min_p;
    request.frequency_penalty = options.frequency_penalty;
    request.presence_penalty = options.presence_penalty;
    request.repetition_penalty = options.repetition_penalty;
    request.logit_bias = options.logit_bias;
    request.min_tokens = options.min_tokens;
    request.n = options.n;
    request.stop = options.stop;
    request.logprobs = options.logprobs;
    request.prompt_logprobs = options.prompt_logprobs;

    GenerationResult result;
    result.others.resize(std::max(options.n, 1) - 1);
    for (int i = 0; info.has_tokenizer && i < std::max(options.n, 1); ++i) result.choice(i).text.emplace();
    const TimePoint start = std::chrono::steady_clock::now();
    auto stream = client_.Generate(request);
    client::Event event;
    while (stream->Next(&event)) {
      if (event.kind == client::Event::Kind::kStarted) {
        result.prompt_tokens = event.prompt_tokens;
        continue;
      }
      RETURN_IF_ERROR(Take(event, SecondsSince(start), &result));
      if (event.choice == 0 && on_text && !event.text.empty()) RETURN_IF_ERROR(on_text(event.text));
    }
    RETURN_IF_ERROR(FromSdk(stream->Finish()));
    result.total_seconds = SecondsSince(start);
    return result;
  }

  StatusOr<LogitsResult> Logits(const std::vector<int32_t>& ids, int decode, int chunk) override {
    client::ModelInfo info;
    RETURN_IF_ERROR(FromSdk(client_.GetModelInfo(&info)));
    if (info.vocab_size < 1)
      return DataLoss("the router's model has a vocabulary of " + std::to_string(info.vocab_size));
    LogitsRows all(static_cast<int64_t>(ids.size()), info.vocab_size);
    const auto status =
        client_.Logits(ids, decode, chunk, [&](int64_t first, int64_t rows, const float* values, size_t count) {
          all.Take(first, rows, values, count);
        });
    RETURN_IF_ERROR(FromSdk(status));
    LogitsResult result;
    result.vocab = info.vocab_size;
    ASSIGN_OR_RETURN(result.values, all.Finish());
    return result;
  }

 private:
  static Status Take(const client::Event& event, double seconds, GenerationResult* result) {
    using Kind = client::Event::Kind;
    if (event.kind == Kind::kPromptLogprobs) {
      result->prompt_logprobs.insert(result->prompt_logprobs.end(), event.logprobs.begin(),
                                     event.logprobs.end());
      return OkStatus();
    }
    if (event.choice < 0 || event.choice > static_cast<int>(result->others.size()))
      return Internal("the router sent choice " + std::to_string(event.choice) + " of " +
                      std::to_string(result->others.size() + 1));
    Choice& choice = result->choice(event.choice);
    if (result->first_token_seconds == 0 && !event.token_ids.empty()) result->first_token_seconds = seconds;
    choice.token_ids.insert(choice.token_ids.end(), event.token_ids.begin(), event.token_ids.end());
    choice.logprobs.insert(choice.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
    if (choice.text) *choice.text += event.text;
    if (event.kind == Kind::kFinished) {
      choice.finish_reason = event.finish_reason;
      choice.matched_stop = event.matched_stop;
      choice.cached_tokens = event.cached_tokens;
    }
    return OkStatus();
  }

  client::Client client_;
};

}  // namespace

StatusOr<std::unique_ptr<Generator>> MakeRouterGenerator(const Target& target) {
  return std::unique_ptr<Generator>(std::make_unique<RouterGenerator>(target.router));
}

StatusOr<std::unique_ptr<Generator>> MakeGenerator(const Target& target) {
  return target.embedded() ? MakeEmbeddedGenerator(target) : MakeRouterGenerator(target);
}

}  // namespace cachalot::cli

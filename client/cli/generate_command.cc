#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "client/cli/commands.h"
#include "client/cli/generator.h"
#include "common/base/standard_output.h"

namespace cachalot::cli {
namespace {

struct Flags {
  Target target;
  IdsInput input;
  std::string prompt, chat;
  int max_tokens = 16, top_k = 0;
  int64_t seed = -1;
  double temperature = 0, top_p = 1;
  bool ignore_eos = false, json = false;
  std::vector<std::string> stop_ids;
  double min_p = 0, frequency_penalty = 0, presence_penalty = 0, repetition_penalty = 1;
  std::string logit_bias, stop;
  int min_tokens = 0, n = 1, logprobs = 0, prompt_logprobs = 0;
};

void Describe(ConfigSchema& schema, Flags& flags) {
  flags.target.AddTo(schema);
  flags.input.AddTo(schema);
  schema.Add("prompt", &flags.prompt, "text to continue; no begin token is added");
  schema.Add("chat", &flags.chat, "one user turn, thinking off");
  schema.Add("max-tokens", &flags.max_tokens, "output tokens at most", Range(1, 1 << 20));
  schema.Add("temperature", &flags.temperature, "0 is greedy", Range(0.0, 100.0));
  schema.Add("top-k", &flags.top_k, "keep the k likeliest tokens; 0 is off", Range(0, 1 << 20));
  schema.Add("top-p", &flags.top_p, "keep the likeliest tokens that reach this probability", Range(0.0, 1.0));
  schema.Add("seed", &flags.seed, "of the sampler; random when not given");
  schema.Add("ignore-eos", &flags.ignore_eos, "do not stop at the model's end tokens");
  schema.Add("stop-ids", &flags.stop_ids, "token ids that end the output");
  schema.Add("json", &flags.json, "print one JSON object");
  schema.Add("min-p", &flags.min_p, "keep tokens at least this times as likely as the likeliest",
             Range(0.0, 1.0));
  schema.Add("frequency-penalty", &flags.frequency_penalty,
             "off a logit for each time the output has its token", Range(-2.0, 2.0));
  schema.Add("presence-penalty", &flags.presence_penalty, "off a logit whose token the output has",
             Range(-2.0, 2.0));
  schema.Add("repetition-penalty", &flags.repetition_penalty,
             "divides logits above 0 of tokens that prompt or output have, multiplies others; 1 is off");
  schema.Add("logit-bias", &flags.logit_bias, "id:bias,...: added to logits; -100 to 100");
  schema.Add("min-tokens", &flags.min_tokens, "output tokens before anything else may end the output",
             Range(0, 1 << 20));
  schema.Add("n", &flags.n, "outputs; output i is that of seed + i", Range(1, 64));
  schema.Add("stop", &flags.stop,
             "strings that end the output, which ends before them: a JSON array, or a,b,... with \\, for a "
             "comma, \\\\ "
             "for a backslash, \\n and \\t");
  schema.Add("logprobs", &flags.logprobs,
             "with --json: log probabilities of output tokens and of so many likeliest", Range(0, 20));
  schema.Add("prompt-logprobs", &flags.prompt_logprobs, "the same of prompt tokens", Range(0, 20));
  schema.Check([&schema, &flags] {
    for (const char* name : {"logprobs", "prompt-logprobs"})
      if (!flags.json && schema.Given(name))
        return InvalidArgument("--" + std::string(name) +
                               ": only --json prints log probabilities; give it too");
    return OkStatus();
  });
}

StatusOr<GenerationOptions> OptionsOf(const ConfigSchema& schema, const Flags& flags) {
  GenerationOptions options;
  options.max_tokens = flags.max_tokens;
  options.temperature = static_cast<float>(flags.temperature);
  options.top_k = flags.top_k;
  options.top_p = static_cast<float>(flags.top_p);
  if (schema.Given("seed")) options.seed = static_cast<uint64_t>(flags.seed);
  options.ignore_eos = flags.ignore_eos;
  for (const std::string& text : flags.stop_ids) {
    ASSIGN_OR_RETURN(const auto ids, ParseIds(text, "--stop-ids"));
    options.stop_token_ids.insert(options.stop_token_ids.end(), ids.begin(), ids.end());
  }
  options.min_p = static_cast<float>(flags.min_p);
  options.frequency_penalty = static_cast<float>(flags.frequency_penalty);
  options.presence_penalty = static_cast<float>(flags.presence_penalty);
  options.repetition_penalty = static_cast<float>(flags.repetition_penalty);
  ASSIGN_OR_RETURN(options.logit_bias, ParseLogitBias(flags.logit_bias, "--logit-bias"));
  options.min_tokens = flags.min_tokens;
  options.n = flags.n;
  ASSIGN_OR_RETURN(options.stop, ParseStrings(flags.stop, "--stop"));
  if (schema.Given("logprobs")) options.logprobs = flags.logprobs;
  if (schema.Given("prompt-logprobs")) options.prompt_logprobs = flags.prompt_logprobs;
  return options;
}

using Json = nlohmann::ordered_json;

/// JSON has no -inf: as OpenAI's and vLLM's servers do.
float Finite(float logprob) { return std::max(logprob, -9999.f); }

Json JsonOf(const std::vector<client::TokenLogprobs>& logprobs) {
  Json array = Json::array();
  for (const client::TokenLogprobs& from : logprobs) {
    Json top = Json::array();
    for (const client::TokenLogprob& entry : from.top)
      top.push_back({{"id", entry.id}, {"logprob", Finite(entry.logprob)}});
    array.push_back({{"logprob", Finite(from.logprob)}, {"top", top}});
  }
  return array;
}

Json JsonOf(const Choice& choice, int prompt_tokens, bool logprobs) {
  Json json;
  json["token_ids"] = choice.token_ids;
  json["text"] = choice.text ? Json(*choice.text) : Json(nullptr);
  json["finish_reason"] = choice.finish_reason;
  if (!choice.matched_stop.empty()) json["matched_stop"] = choice.matched_stop;
  json["prompt_tokens"] = prompt_tokens;
  json["completion_tokens"] = choice.token_ids.size();
  json["cached_tokens"] = choice.cached_tokens;
  if (logprobs) json["logprobs"] = JsonOf(choice.logprobs);
  return json;
}

Json JsonOf(GenerationResult& result, const GenerationOptions& options) {
  const bool logprobs = options.logprobs.has_value();
  Json json = JsonOf(result.choice(0), result.prompt_tokens, logprobs);
  if (options.prompt_logprobs) json["prompt_logprobs"] = JsonOf(result.prompt_logprobs);
  for (int i = 0; options.n > 1 && i < options.n; ++i)
    json["choices"].push_back(JsonOf(result.choice(i), result.prompt_tokens, logprobs));
  return json;
}

/// Text without a tokenizer, which has not been shown meanwhile: the token ids.
std::string Ids(const Choice& choice) {
  std::string text;
  for (const int32_t id : choice.token_ids) text += (text.empty() ? "" : ",") + std::to_string(id);
  return text;
}

StatusOr<Prompt> PromptOf(const ConfigSchema& schema, const Flags& flags) {
  const int given = flags.input.given() + schema.Given("prompt") + schema.Given("chat");
  if (given != 1)
    return InvalidArgument("give exactly one of --ids, --ids-file, --prompt and --chat");
  Prompt prompt;
  if (flags.input.given()) {
    ASSIGN_OR_RETURN(prompt.ids, flags.input.Read());
  } else if (schema.Given("prompt")) {
    prompt.text = flags.prompt;
  } else {
    prompt.chat = {{"user", flags.chat}};
  }
  return prompt;
}

Status Run(const ConfigSchema& schema, const Flags& flags) {
  ASSIGN_OR_RETURN(const Prompt prompt, PromptOf(schema, flags));
  ASSIGN_OR_RETURN(const GenerationOptions options, OptionsOf(schema, flags));
  ASSIGN_OR_RETURN(const auto generator, MakeGenerator(flags.target));
  const auto show = [&](const std::string& text) { return flags.json ? OkStatus() : WriteStdout(text); };
  ASSIGN_OR_RETURN(GenerationResult result, generator->Generate(prompt, options, show));
  if (flags.json) return WriteStdout(JsonOf(result, options).dump() + "\n");
  std::string rest;
  for (int i = 0; i < options.n; ++i) {
    const Choice& choice = result.choice(i);
    if (!choice.text) rest += Ids(choice);
    if (choice.text && i > 0) rest += *choice.text;
    rest += "\n";
  }
  return WriteStdout(rest);
}

}  // namespace

int GenerateCommand(const std::vector<std::string>& words) {
  Flags flags;
  ConfigSchema schema("cachalot generate", "One completion, embedded (--model) or at a router (--router).");
  Describe(schema, flags);
  const auto parsed = schema.Parse(words);
  if (!parsed.ok()) return Report("generate", parsed.status());
  if (parsed->help) return std::puts(schema.Help().c_str()), 0;
  return Report("generate", Run(schema, flags));
}

}  // namespace cachalot::cli

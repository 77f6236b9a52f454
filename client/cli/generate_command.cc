#include <cstdio>

#include <nlohmann/json.hpp>

#include "client/cli/commands.h"
#include "client/cli/generator.h"

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
  ASSIGN_OR_RETURN(const auto generator, MakeGenerator(flags.target));
  const auto show = [&](const std::string& text) {
    if (flags.json) return;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  };
  ASSIGN_OR_RETURN(const GenerationResult result, generator->Generate(prompt, options, show));
  if (!flags.json) {
    if (!result.text)
      for (size_t i = 0; i < result.token_ids.size(); ++i) std::printf("%s%d", i ? "," : "", result.token_ids[i]);
    std::puts("");
    return OkStatus();
  }
  nlohmann::ordered_json json;
  json["token_ids"] = result.token_ids;
  json["text"] = result.text ? nlohmann::ordered_json(*result.text) : nlohmann::ordered_json(nullptr);
  json["finish_reason"] = result.finish_reason;
  json["prompt_tokens"] = result.prompt_tokens;
  json["completion_tokens"] = result.token_ids.size();
  std::puts(json.dump().c_str());
  return OkStatus();
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

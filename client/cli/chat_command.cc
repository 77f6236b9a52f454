#include <cstdio>
#include <iostream>

#include "client/cli/commands.h"
#include "client/cli/generator.h"
#include "client/embedded/embedded_model.h"
#include "common/base/standard_output.h"

namespace cachalot::cli {
namespace {

/// Turns until the input ends; every answer is asked for with the whole conversation.
Status Talk(Generator& generator, const GenerationOptions& options, const std::string& system) {
  Prompt prompt;
  if (!system.empty()) prompt.chat.push_back({"system", system});
  for (std::string line; std::fputs("> ", stderr), std::getline(std::cin, line);) {
    if (line.empty()) continue;
    prompt.chat.push_back({"user", line});
    ASSIGN_OR_RETURN(const GenerationResult result,
                     generator.Generate(prompt, options, [](const std::string& text) { return WriteStdout(text); }));
    RETURN_IF_ERROR(WriteStdout("\n"));
    prompt.chat.push_back({"assistant", result.text.value_or("")});
  }
  return OkStatus();
}

}  // namespace

int ChatCommand(const std::vector<std::string>& words) {
  Target target;
  target.prefix_cache_bytes = kDefaultPrefixCacheBytes;  // a turn begins with those before it
  GenerationOptions options;
  options.max_tokens = 512;
  std::string system;
  double temperature = 0;
  ConfigSchema schema("cachalot chat", "Reads user turns line by line from stdin and streams the answers.");
  target.AddTo(schema);
  schema.Add("system", &system, "system message");
  schema.Add("max-tokens", &options.max_tokens, "tokens of an answer at most", Range(1, 1 << 20));
  schema.Add("temperature", &temperature, "0 is greedy", Range(0.0, 100.0));
  const auto parsed = schema.Parse(words);
  if (!parsed.ok()) return Report("chat", parsed.status());
  if (parsed->help) return std::puts(schema.Help().c_str()), 0;
  options.temperature = static_cast<float>(temperature);
  const auto generator = MakeGenerator(target);
  if (!generator.ok()) return Report("chat", generator.status());
  return Report("chat", Talk(**generator, options, system));
}

}  // namespace cachalot::cli

// `cachalot demo`: what deploy/local/demo.sh shows once the cluster is up.

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "client/cli/commands.h"
#include "client/cli/generator.h"
#include "common/base/standard_output.h"

namespace cachalot::cli {
namespace {

constexpr const char* kReferences[] = {"Genesis 1:1", "Psalms 23:1", "John 3:16"};
constexpr int kMaxTokens = 128;

Status Run(const Target& target) {
  ASSIGN_OR_RETURN(const auto generator, MakeGenerator(target));
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  GenerationOptions options;
  options.max_tokens = kMaxTokens;
  for (const char* reference : kReferences) {
    Prompt prompt;
    prompt.chat = {{"user", reference}};
    const std::string head = reference;
    RETURN_IF_ERROR(WriteStdout(terminal ? "\033[1m" + head + "\033[0m  " : head + "\t"));
    ASSIGN_OR_RETURN(const GenerationResult result,
                     generator->Generate(prompt, options, [](const std::string& text) { return WriteStdout(text); }));
    RETURN_IF_ERROR(WriteStdout("\n"));
    const double decode = result.total_seconds - result.first_token_seconds;
    const auto more = static_cast<double>(result.token_ids.size()) - 1;
    std::fprintf(stderr, "%s: first token after %.1f ms, then %.0f tokens/s\n", reference,
                 result.first_token_seconds * 1e3, more / std::max(decode, 1e-9));
  }
  return OkStatus();
}

}  // namespace

int DemoCommand(const std::vector<std::string>& words) {
  Target target;
  ConfigSchema schema("cachalot demo", "Asks the demo checkpoint for three verses; no terminal: REF<TAB>TEXT a line.");
  target.AddTo(schema);
  const auto parsed = schema.Parse(words);
  if (!parsed.ok()) return Report("demo", parsed.status());
  if (parsed->help) return std::puts(schema.Help().c_str()), 0;
  return Report("demo", Run(target));
}

}  // namespace cachalot::cli

#include <cstdio>

#include "client/cli/commands.h"
#include "client/cli/generator.h"
#include "common/loader/safetensors.h"

namespace cachalot::cli {
namespace {

Status Run(const Target& target, const IdsInput& input, int chunk, int decode, const std::string& output) {
  ASSIGN_OR_RETURN(const auto ids, input.Read());
  ASSIGN_OR_RETURN(const auto generator, MakeGenerator(target));
  ASSIGN_OR_RETURN(const auto logits, generator->Logits(ids, decode, chunk));
  SafetensorsWriter writer;
  writer.Add("logits", {static_cast<int64_t>(ids.size()), logits.vocab}, std::span<const float>(logits.values));
  return writer.Write(output);
}

}  // namespace

int LogitsCommand(const std::vector<std::string>& words) {
  Target target;
  IdsInput input;
  std::string output;
  int chunk = 0, decode = 0;
  ConfigSchema schema("cachalot logits", "Logits of every position, as tensor `logits` [T, vocab] f32.");
  target.AddTo(schema);
  input.AddTo(schema);
  schema.Add("output", &output, "the .safetensors file to write", NotEmpty());
  schema.Require("output");
  schema.Add("chunk", &chunk, "tokens per prefill step; 0: as configured", Range(0, 1 << 20));
  schema.Add("decode", &decode, "so many of the last ids go one at a time through the decode path", Range(0, 1 << 20));
  const auto parsed = schema.Parse(words);
  if (!parsed.ok()) return Report("logits", parsed.status());
  if (parsed->help) return std::puts(schema.Help().c_str()), 0;
  if (!input.given()) return Report("logits", InvalidArgument("give --ids 1,2,3 or --ids-file F"));
  return Report("logits", Run(target, input, chunk, decode, output));
}

}  // namespace cachalot::cli

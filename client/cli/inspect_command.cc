// `cachalot inspect DIR`: what a checkpoint holds and what serving it takes, from config.json and the headers
// alone.

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "client/cli/commands.h"
#include "client/embedded/embedded_model.h"
#include "common/config/schema.h"
#include "common/loader/checkpoint.h"
#include "common/model/memory_plan.h"
#include "common/model/weights_summary.h"

namespace cachalot::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Inspection {
  std::string directory;
  ModelConfig config;
  CheckpointSummary summary;
  bool has_tokenizer = false;
  int64_t context = 0;
  WeightPlan weights;
  KvPlan kv;
  std::vector<std::string> warnings;
};

std::string Schedule(const ModelConfig& config) {
  std::string text;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    text += (i ? " " : "") + std::to_string(config.ratio(static_cast<int>(i)));
    if (config.hash_layer[i]) text += "h";
  }
  return text;
}

int LayersOf(const ModelConfig& config, LayerKind kind) {
  return static_cast<int>(std::count(config.layers.begin(), config.layers.end(), kind));
}

std::vector<std::string> Warnings(const Inspection& in) {
  std::vector<std::string> warnings;
  for (const std::string& refusal : in.summary.refusals) warnings.push_back("does not load: " + refusal);
  if (!in.summary.unexpected.empty()) {
    std::string names;
    for (size_t i = 0; i < in.summary.unexpected.size() && i < 5; ++i)
      names += " " + in.summary.unexpected[i];
    warnings.push_back(std::to_string(in.summary.unexpected.size()) + " unexpected tensors, not used:" +
                       names + (in.summary.unexpected.size() > 5 ? " ..." : ""));
  }
  if (in.summary.dspark) warnings.push_back("mtp.* is a DSpark draft: ignored");
  if (!in.has_tokenizer) warnings.push_back("no tokenizer.json: token ids only, no text");
  if (in.context > in.config.max_position_embeddings)
    warnings.push_back("the context exceeds max_position_embeddings = " +
                       std::to_string(in.config.max_position_embeddings));
  return warnings;
}

StatusOr<Inspection> Inspect(const std::string& directory, int64_t context, int shards) {
  Inspection in;
  in.directory = directory;
  ASSIGN_OR_RETURN(in.config, ModelConfig::Load(directory));
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(directory));
  in.summary = InspectCheckpoint(in.config, *checkpoint);
  const auto tokenizer = LoadTokenizerIfPresent(directory);
  in.has_tokenizer = !tokenizer.ok() || *tokenizer != nullptr;
  if (!tokenizer.ok()) in.summary.refusals.push_back(StatusMessage(tokenizer.status()));
  in.context = context > 0 ? context : in.config.max_position_embeddings;
  in.weights = PlanWeights(in.config, in.summary, shards);
  in.kv = PlanKv(in.config, in.context);
  in.warnings = Warnings(in);
  return in;
}

Json ConfigJson(const ModelConfig& c) {
  Json json = {{"vocab_size", c.vocab_size},
               {"hidden_size", c.hidden_size},
               {"num_hidden_layers", c.num_hidden_layers},
               {"num_attention_heads", c.num_attention_heads},
               {"head_dim", c.head_dim},
               {"rope_dim", c.rope_dim},
               {"q_lora_rank", c.q_lora_rank},
               {"o_groups", c.o_groups},
               {"o_lora_rank", c.o_lora_rank},
               {"sliding_window", c.sliding_window},
               {"index_n_heads", c.index_n_heads},
               {"index_head_dim", c.index_head_dim},
               {"index_topk", c.index_topk},
               {"n_routed_experts", c.n_routed_experts},
               {"num_experts_per_tok", c.num_experts_per_tok},
               {"moe_intermediate_size", c.moe_intermediate_size},
               {"hc_mult", c.hc_mult},
               {"max_position_embeddings", c.max_position_embeddings},
               {"yarn_factor", c.rope.yarn ? Json(c.rope.yarn_config.factor) : Json(nullptr)}};
  for (size_t i = 0; i < c.layers.size(); ++i) {
    json["compress_ratios"].push_back(c.ratio(static_cast<int>(i)));
    if (c.hash_layer[i]) json["hash_layers"].push_back(i);
  }
  return json;
}

Json KvJson(const KvBytes& bytes) {
  return {{"bytes_per_token", bytes.per_token},
          {"fixed_bytes", bytes.window + bytes.state},
          {"window_bytes", bytes.window},
          {"state_bytes", bytes.state},
          {"total_bytes", bytes.total}};
}

Json InspectionJson(const Inspection& in) {
  const TensorGroup total = in.summary.Total();
  Json groups;
  for (int g = 0; g < kTensorGroups; ++g) {
    const TensorGroup& group = in.summary.groups[g];
    groups[std::string(TensorGroupName(static_cast<TensorGroupId>(g)))] = {
        {"tensors", group.tensors},
        {"parameters", group.parameters},
        {"bytes", group.bytes},
        {"dtype_bytes", group.dtype_bytes}};
  }
  Json bf16 = KvJson(in.kv.bf16);
  bf16["total_bytes_by_row"] = in.kv.bf16_rows;
  bf16["total_bytes_minimal"] = in.kv.bf16_minimal;
  bf16["formula"] = in.kv.bf16_formula;
  return {{"directory", in.directory},
          {"config", ConfigJson(in.config)},
          {"names", NameSchemeText(in.summary.names)},
          {"stacked_experts", in.summary.stacked_experts},
          {"draft", in.summary.dspark                                   ? Json("dspark")
                    : in.summary.group(TensorGroupId::kMtp).tensors > 0 ? Json("mtp")
                                                                        : Json(nullptr)},
          {"files", in.summary.files},
          {"tensors", total.tensors},
          {"bytes", total.bytes},
          {"parameters", in.summary.MainParameters()},
          {"groups", groups},
          {"roles",
           {{"dense", in.weights.dense},
            {"expert_shards", in.weights.shards},
            {"embedded", in.weights.embedded}}},
          {"context", in.context},
          {"kv_fp32", KvJson(in.kv.fp32)},
          {"kv_bf16", bf16},
          {"loads", in.summary.refusals.empty()},
          {"warnings", in.warnings}};
}

/// 1536 -> "1.50 KiB".
std::string Size(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < std::size(kUnits); ++unit) bytes /= 1024;
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.2f %s", bytes, kUnits[unit]);
  return text;
}

void PrintModel(const Inspection& in) {
  const ModelConfig& c = in.config;
  std::printf("%s\n", in.directory.c_str());
  std::printf("  model     %d layers, hidden %d, vocabulary %d, context %" PRId64 "%s\n", c.num_hidden_layers,
              c.hidden_size, c.vocab_size, c.max_position_embeddings, c.rope.yarn ? " (YaRN)" : "");
  std::printf(
      "  attention %d heads of %d (%d RoPE), q rank %d, o %d x %d, window %d, indexer %d x %d top %d\n",
      c.num_attention_heads, c.head_dim, c.rope_dim, c.q_lora_rank, c.o_groups, c.o_lora_rank,
      c.sliding_window, c.index_n_heads, c.index_head_dim, c.index_topk);
  std::printf("  experts   %d of width %d, %d a token, and 1 shared; %d streams\n", c.n_routed_experts,
              c.moe_intermediate_size, c.num_experts_per_tok, c.hc_mult);
  std::printf(
      "  schedule  %d window, %d CSA, %d HCA; ratio by layer (h: experts by token id):\n            %s\n",
      LayersOf(c, LayerKind::kWindow), LayersOf(c, LayerKind::kCsa), LayersOf(c, LayerKind::kHca),
      Schedule(c).c_str());
  std::printf("  names     %s%s\n", std::string(NameSchemeText(in.summary.names)).c_str(),
              in.summary.stacked_experts ? ", stacked experts" : "");
}

void PrintGroups(const Inspection& in) {
  std::printf("\n  %-14s %9s %16s %16s  %-10s  %s\n", "group", "tensors", "parameters", "bytes", "",
              "stored as");
  const auto row = [](const std::string& name, const TensorGroup& group) {
    std::printf("  %-14s %9" PRId64 " %16" PRId64 " %16" PRId64 "  %-10s  %s\n", name.c_str(), group.tensors,
                group.parameters, group.bytes, Size(static_cast<double>(group.bytes)).c_str(),
                group.DTypes().c_str());
  };
  for (int g = 0; g < kTensorGroups; ++g) {
    if (in.summary.groups[g].tensors > 0)
      row(std::string(TensorGroupName(static_cast<TensorGroupId>(g))), in.summary.groups[g]);
  }
  row("total", in.summary.Total());
  std::printf("  in %d files; main model: %" PRId64 " parameters (scales and id tables not counted)\n",
              in.summary.files, in.summary.MainParameters());
}

void PrintMemory(const Inspection& in) {
  const auto line = [](const std::string& name, double bytes) {
    std::printf("  %-34s %20.0f  %s\n", name.c_str(), bytes, Size(bytes).c_str());
  };
  std::puts("\n  weights by role");
  line("prefill or decode, remote experts", static_cast<double>(in.weights.dense));
  const auto largest = *std::max_element(in.weights.shards.begin(), in.weights.shards.end());
  line("expert shard, 1 of " + std::to_string(in.weights.shards.size()), static_cast<double>(largest));
  line("everything in one process", static_cast<double>(in.weights.embedded));

  const auto kv = [&](const char* title, const KvBytes& bytes) {
    std::printf("\n  KV of one sequence, %s\n", title);
    std::printf("  %-34s %20.2f\n", "bytes a token", bytes.per_token);
    line("fixed: window", static_cast<double>(bytes.window));
    line("fixed: compressor state (fp32)", static_cast<double>(bytes.state));
    line("at " + std::to_string(in.context) + " tokens", static_cast<double>(bytes.total));
  };
  kv("fp32 (mode exact)", in.kv.fp32);
  kv(("bf16 (mode bf16): " + in.kv.bf16_formula).c_str(), in.kv.bf16);
  line("the same, rows counted singly", static_cast<double>(in.kv.bf16_rows));
  line("the same, minimal state", static_cast<double>(in.kv.bf16_minimal));
}

}  // namespace

int InspectCommand(const std::vector<std::string>& words) {
  int64_t context = 0;
  int shards = kReductionGroups;
  bool json = false;
  ConfigSchema schema("cachalot inspect DIR",
                      "What a checkpoint holds and needs; reads config.json and headers only.");
  schema.Add("context", &context, "tokens of a sequence; default: max_position_embeddings",
             Range(int64_t{0}, int64_t{1} << 40));
  schema.Add("shards", &shards, "expert shards: 1, 2, 4 or 8", Range(1, kReductionGroups));
  schema.Add("json", &json, "print one JSON object");
  schema.TakePositional();
  schema.Check([&] {
    return kReductionGroups % shards == 0
               ? OkStatus()
               : InvalidArgument("--shards: wanted 1, 2, 4 or 8, got " + std::to_string(shards));
  });
  const auto parsed = schema.Parse(words);
  if (!parsed.ok()) return Report("inspect", parsed.status());
  if (parsed->help) return std::puts(schema.Help().c_str()), 0;
  if (parsed->positional.size() != 1)
    return Report("inspect", InvalidArgument("wanted one checkpoint directory, got " +
                                             std::to_string(parsed->positional.size()) + ": cachalot inspect DIR"));
  const auto in = Inspect(parsed->positional[0], context, shards);
  if (!in.ok()) return Report("inspect", in.status());
  if (json) return std::puts(InspectionJson(*in).dump(2).c_str()), 0;
  PrintModel(*in);
  PrintGroups(*in);
  PrintMemory(*in);
  for (const std::string& warning : in->warnings) std::printf("\nwarning: %s", warning.c_str());
  if (!in->warnings.empty()) std::puts("");
  return 0;
}

}  // namespace cachalot::cli

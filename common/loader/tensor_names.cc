#include "common/loader/tensor_names.h"

#include <algorithm>
#include <initializer_list>
#include <span>

namespace cachalot {
namespace {

struct Rename {
  std::string_view from, to;
};

// By the first word of what is left of the name: a matching prefix of a longer word must not be taken for it
// (`norm` is not `norm_bias`), and the same word means other tensors in the attention and in its compressors.
constexpr Rename kTopNames[] = {{"embed_tokens", "embed"}, {"lm_head", "head"}};
constexpr Rename kBlockNames[] = {{"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"}};
constexpr Rename kAttentionNames[] = {{"q_a_proj", "wq_a"}, {"q_a_norm", "q_norm"}, {"q_b_proj", "wq_b"},
                                      {"kv_proj", "wkv"},   {"norm", "kv_norm"},    {"o_a_proj", "wo_a"},
                                      {"o_b_proj", "wo_b"}, {"sinks", "attn_sink"}};
constexpr Rename kCompressorNames[] = {
    {"kv_proj", "wkv"}, {"gate_proj", "wgate"}, {"kv_norm", "norm"}, {"position_bias", "ape"}};
constexpr Rename kExpertNames[] = {{"gate_proj", "w1"}, {"up_proj", "w3"}, {"down_proj", "w2"}};

bool Drop(std::string_view* name, std::string_view prefix) {
  if (!name->starts_with(prefix)) return false;
  name->remove_prefix(prefix.size());
  return true;
}

/// Takes the first word and its dot.
std::string_view TakeWord(std::string_view* name) {
  const size_t end = std::min(name->find('.'), name->size());
  const std::string_view word = name->substr(0, end);
  name->remove_prefix(std::min(end + 1, name->size()));
  return word;
}

std::string Renamed(std::string_view name, std::span<const Rename> renames) {
  const std::string_view word = name.substr(0, name.find('.'));
  for (const Rename& rename : renames)
    if (word == rename.from) return std::string(rename.to) + std::string(name.substr(word.size()));
  return std::string(name);
}

/// transformers puts the indexer into the compressor, the release a compressor into the indexer (model.md 7.1).
std::string AttentionName(std::string_view name) {
  if (Drop(&name, "compressor.indexer.")) {
    Drop(&name, "scorer.");
    if (name.starts_with("q_b_proj.") || name.starts_with("weights_proj."))
      return "indexer." + Renamed(name, kAttentionNames);
    return "indexer.compressor." + Renamed(name, kCompressorNames);
  }
  for (const std::string_view at : {"indexer.compressor.", "compressor."})
    if (Drop(&name, at)) return std::string(at) + Renamed(name, kCompressorNames);
  if (name.starts_with("indexer.")) return std::string(name);
  return Renamed(name, kAttentionNames);
}

std::string FfnName(std::string_view name) {
  if (name == "gate.e_score_correction_bias") return "gate.bias";
  if (Drop(&name, "shared_experts.")) return "shared_experts." + Renamed(name, kExpertNames);
  if (Drop(&name, "experts.")) {
    if (name.empty() || name[0] < '0' || name[0] > '9') return "experts." + std::string(name);  // stacked
    const std::string_view id = TakeWord(&name);
    return "experts." + std::string(id) + "." + Renamed(name, kExpertNames);
  }
  return std::string(name);
}

std::string BlockName(std::string_view name) {
  if (Drop(&name, "self_attn.") || Drop(&name, "attn.")) return "attn." + AttentionName(name);
  if (Drop(&name, "mlp.") || Drop(&name, "ffn.")) return "ffn." + FfnName(name);
  if (Drop(&name, "attn_hc.")) return "hc_attn_" + std::string(name);
  if (Drop(&name, "ffn_hc.")) return "hc_ffn_" + std::string(name);
  if (Drop(&name, "hc_head.hc_")) return "hc_head_" + std::string(name);  // the MTP block's own
  return Renamed(name, kBlockNames);
}

/// "a.weight_scale_inv" -> "a.scale"; stacked experts are parameters without a ".weight": "a_scale_inv".
std::string WithoutScaleInv(std::string_view name) {
  for (const std::string_view suffix : {".weight_scale_inv", "_scale_inv"})
    if (name.ends_with(suffix)) return std::string(name.substr(0, name.size() - suffix.size())) + ".scale";
  return std::string(name);
}

}  // namespace

std::string OfficialTensorName(std::string_view stored) {
  Drop(&stored, "model.");
  const std::string name = WithoutScaleInv(stored);
  std::string_view rest = name;
  if (Drop(&rest, "hc_head.hc_")) return "hc_head_" + std::string(rest);
  if (!rest.starts_with("layers.") && !rest.starts_with("mtp.")) return Renamed(rest, kTopNames);
  const std::string_view list = TakeWord(&rest), index = TakeWord(&rest);
  return std::string(list) + "." + std::string(index) + "." + BlockName(rest);
}

std::string_view NameSchemeText(NameScheme scheme) {
  switch (scheme) {
    case NameScheme::kReleased:
      return "released";
    case NameScheme::kConverted:
      return "converted";
    case NameScheme::kSavePretrained:
      return "transformers save_pretrained";
    case NameScheme::kRuntime:
      return "transformers runtime";
  }
  return "?";
}

NameScheme NameSchemeOf(std::string_view stored) {
  const auto has_any = [&](std::initializer_list<std::string_view> parts) {
    return std::any_of(parts.begin(), parts.end(),
                       [&](std::string_view part) { return stored.find(part) != std::string_view::npos; });
  };
  if (has_any({"layernorm.", "attn_hc.", "ffn_hc.", ".q_a_proj.", ".experts.gate_up_proj", ".sinks"}))
    return NameScheme::kRuntime;
  if (has_any({"hc_head.hc_", ".attn.norm."})) return NameScheme::kSavePretrained;
  if (stored.starts_with("model.") || has_any({".self_attn.", ".mlp.", "_scale_inv"}))
    return NameScheme::kConverted;
  return NameScheme::kReleased;
}

}  // namespace cachalot

#pragma once
// The spellings under which exporters store the tensors of model.md 7.1, and how many of each a checkpoint has.

#include <string>
#include <string_view>

namespace cachalot {

/// The official name of a stored one, for every spelling of model.md 7.3:
///   "model.layers.3.attn.norm.weight"                          -> "layers.3.attn.kv_norm.weight"
///   "model.layers.2.self_attn.compressor.indexer.kv_proj.weight" ->
///   "layers.2.attn.indexer.compressor.wkv.weight" "model.layers.2.self_attn.q_a_proj.weight_scale_inv" ->
///   "layers.2.attn.wq_a.scale"
/// The stacked experts of transformers have no official name; they become
/// "layers.L.ffn.experts.gate_up_proj",
/// "....down_proj" and, for their scales, "....gate_up_proj.scale". An official name is its own official
/// name; a name that nobody knows comes back without its leading "model.".
std::string OfficialTensorName(std::string_view stored);

/// Who wrote a tensor's name. A checkpoint's scheme is the latest of this list among its tensors: most names
/// are the same in several schemes.
enum class NameScheme {
  kReleased,        // model.md 7.1
  kConverted,       // 7.3.2: a leading model., self_attn, mlp, weight_scale_inv, e_score_correction_bias
  kSavePretrained,  // 7.3.4: transformers' save_pretrained
  kRuntime,         // 7.3.3: transformers' state_dict, experts stacked
};
std::string_view NameSchemeText(NameScheme scheme);
NameScheme NameSchemeOf(std::string_view stored);

}  // namespace cachalot

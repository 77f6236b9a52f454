#pragma once
// ModelConfig: the shape of a DeepSeek-V4 model, from config.json in any of its three spellings (model.md 1).

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/status.h"

namespace cachalot {

/// Every expert set is split into this many fixed contiguous reduction groups (docs/numerics.md): partial sums are
/// formed inside a group and added in group order, so that any shard count that divides it gives the same bits.
inline constexpr int kReductionGroups = 8;

enum class LayerKind : uint8_t {
  kWindow = 0,  // sliding window only
  kCsa = 4,     // window + compressed rows of ratio 4, chosen by the lightning indexer
  kHca = 128,   // window + all compressed rows of ratio 128
};

struct YarnConfig {
  double factor = 1, original_max_position_embeddings = 0, beta_fast = 32, beta_slow = 1;
};

struct RopeConfig {
  double theta = 10000;          // ratio-0 layers, plain
  double compress_theta = 160000;  // everything in ratio-4/128 layers
  bool yarn = false;             // on the compress table only
  YarnConfig yarn_config;
};

struct ModelConfig {
  int vocab_size = 0, hidden_size = 0, num_hidden_layers = 0;
  int num_attention_heads = 0, head_dim = 0, rope_dim = 0;  // the last rope_dim channels of a head rotate
  int q_lora_rank = 0, o_lora_rank = 0, o_groups = 0;
  int sliding_window = 0;  // visible raw tokens, self included
  int index_n_heads = 0, index_head_dim = 0, index_topk = 0;
  int n_routed_experts = 0, num_experts_per_tok = 0, moe_intermediate_size = 0;
  float routed_scaling_factor = 1.5f, swiglu_limit = 10.f;
  int hc_mult = 4, hc_sinkhorn_iters = 20;
  float hc_eps = 1e-6f, rms_norm_eps = 1e-6f;
  int64_t max_position_embeddings = 0;
  int bos_token_id = 0;
  std::vector<int> eos_token_ids;
  RopeConfig rope;
  std::vector<LayerKind> layers;  // [num_hidden_layers]
  std::vector<bool> hash_layer;   // [num_hidden_layers] experts by token id

  int ratio(int layer) const { return static_cast<int>(layers[layer]); }
  int hc_mix() const { return (2 + hc_mult) * hc_mult; }  // rows of a hyper-connection's fn
  /// Experts of reduction group g are [group_begin(g), group_begin(g + 1)).
  int group_begin(int g) const {
    return static_cast<int>(static_cast<int64_t>(n_routed_experts) * g / kReductionGroups);
  }

  /// `text` is the content of config.json, `file` its name for messages. Accepts the released form
  /// (compress_ratios, rope_scaling, num_hash_layers), transformers' (layer_types, mlp_layer_types, rope_parameters)
  /// and DeepSeek's private names (dim, n_layers, ...). INVALID_ARGUMENT names file, key, wanted and got.
  static StatusOr<ModelConfig> Parse(const std::string& text, const std::string& file);
  static StatusOr<ModelConfig> Load(const std::string& directory);

  /// All fields in one fixed order and spelling: what Compat hashes.
  std::string Canonical() const;
};

/// fp32 inverse frequencies [rope_dim/2] (model.md 5). `compress`: the table of ratio-4/128 layers.
std::vector<float> InverseFrequencies(const ModelConfig& config, bool compress);

}  // namespace cachalot

#pragma once
// The tensors of a DeepSeek-V4 checkpoint as a forward pass wants them. Matrices stay in their stored format and
// point into the mapped files; vectors are widened to fp32 (exact).

#include <memory>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/model/config.h"
#include "common/moe/expert_matrices.h"
#include "common/tensor/matrix_view.h"

namespace cachalot {

class Checkpoint;  // common/loader/checkpoint.h

struct HyperConnectionWeights {
  MatrixView fn;                  // [(2+H)*H, H*D] f32; hyper head: [H, H*D]
  std::vector<float> base, scale;  // [(2+H)*H], [3]; hyper head: [H], [1]
};

struct CompressorWeights {
  MatrixView wkv, wgate;    // [coff*dh, D], coff = 2 for ratio 4, else 1
  std::vector<float> ape;   // [ratio, coff*dh]
  std::vector<float> norm;  // [dh]
};

struct IndexerWeights {
  MatrixView wq_b;          // [index_n_heads*index_head_dim, q_lora_rank]
  MatrixView weights_proj;  // [index_n_heads, D]
  CompressorWeights compressor;
};

struct AttentionWeights {
  MatrixView wq_a;                     // [q_lora_rank, D]
  MatrixView wq_b;                     // [N*d, q_lora_rank]
  MatrixView wkv;                      // [d, D]
  MatrixView wo_a;                     // [o_groups*o_lora_rank, N*d/o_groups]
  MatrixView wo_b;                     // [D, o_groups*o_lora_rank]
  std::vector<float> q_norm, kv_norm;  // [q_lora_rank], [d]
  std::vector<float> sink;             // [N]
  CompressorWeights compressor;        // CSA and HCA layers
  IndexerWeights indexer;              // CSA layers
};

using ExpertWeights = ExpertMatrices;

struct MoeWeights {
  MatrixView gate;                 // [E, D]
  std::vector<float> bias;         // [E], score-routed layers
  std::vector<int32_t> tid2eid;    // [vocab, K], hash layers
  ExpertWeights shared;
  std::vector<ExpertWeights> experts;  // [E]; absent views where the role does not own the expert
};

struct LayerWeights {
  HyperConnectionWeights hc_attn, hc_ffn;
  std::vector<float> attn_norm, ffn_norm;  // [D]
  AttentionWeights attn;
  MoeWeights moe;
};

/// Which tensors a role maps.
struct WeightSelection {
  bool dense = true;                         // everything but the routed experts
  int expert_begin = 0, expert_end = 0;      // routed experts [begin, end) of every layer; -1 end: all
  static WeightSelection All() { return {true, 0, -1}; }
  static WeightSelection DenseOnly() { return {true, 0, 0}; }
  static WeightSelection Experts(int begin, int end) { return {false, begin, end}; }
};

struct ModelWeights {
  ModelConfig config;
  MatrixView embed, head;   // [vocab, D]
  std::vector<float> norm;  // [D]
  HyperConnectionWeights hc_head;
  std::vector<LayerWeights> layers;

  /// SHA-256 (hex) over the canonical config, the safetensors headers and a sample of each tensor: equal for every
  /// role (docs/checkpoints.md) of one checkpoint whatever part of it the role maps.
  std::string fingerprint;

  std::shared_ptr<const Checkpoint> checkpoint;  // keeps the mappings alive

  /// Reads config.json, checks that every selected tensor has the dtype and shape of model.md 7.1 and maps it. Every
  /// refusal names file, tensor, wanted and got. NOT_FOUND: no such directory or file.
  static StatusOr<std::shared_ptr<const ModelWeights>> Load(const std::string& directory,
                                                            const WeightSelection& selection);
};

}  // namespace cachalot

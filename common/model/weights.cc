#include "common/model/weights.h"

#include <utility>

#include "common/base/log.h"
#include "common/loader/checkpoint.h"
#include "common/loader/sha256.h"
#include "common/model/weights_reader.h"
#include "common/model/weights_summary.h"

namespace cachalot {
namespace {

/// Walks the tensors of model.md 7.1 in one fixed order. What the role does not own is only remembered by name,
/// so that every role can tell an unexpected tensor from one of another role.
class WeightLoader {
 public:
  WeightLoader(const ModelConfig& config, const WeightSelection& selection, TensorReader* reader)
      : c_(config), selection_(selection), in_(*reader) {}

  void Load(ModelWeights* out) {
    in_.set_owned(selection_.dense);
    out->embed = in_.Matrix("embed.weight", c_.vocab_size, c_.hidden_size);
    out->head = in_.Matrix("head.weight", c_.vocab_size, c_.hidden_size);
    out->norm = in_.Vector("norm.weight", {c_.hidden_size});
    out->hc_head = HyperConnection("hc_head_", c_.hc_mult, 1);
    for (int layer = 0; layer < c_.num_hidden_layers && in_.ok(); ++layer)
      out->layers.push_back(Layer(layer));
  }

 private:
  LayerWeights Layer(int layer) {
    const std::string at = "layers." + std::to_string(layer) + ".";
    LayerWeights w;
    in_.set_owned(selection_.dense);
    w.hc_attn = HyperConnection(at + "hc_attn_", c_.hc_mix(), 3);
    w.hc_ffn = HyperConnection(at + "hc_ffn_", c_.hc_mix(), 3);
    w.attn_norm = in_.Vector(at + "attn_norm.weight", {c_.hidden_size});
    w.ffn_norm = in_.Vector(at + "ffn_norm.weight", {c_.hidden_size});
    w.attn = Attention(at + "attn.", c_.layers[layer]);
    w.moe = Moe(at + "ffn.", c_.hash_layer[layer]);
    return w;
  }

  HyperConnectionWeights HyperConnection(const std::string& at, int rows, int scales) {
    HyperConnectionWeights w;
    w.fn = in_.MatrixF32(at + "fn", rows, int64_t{c_.hc_mult} * c_.hidden_size);
    w.base = in_.Vector(at + "base", {rows});
    w.scale = in_.Vector(at + "scale", {scales});
    return w;
  }

  AttentionWeights Attention(const std::string& at, LayerKind kind) {
    const int64_t heads_width = int64_t{c_.num_attention_heads} * c_.head_dim;
    const int64_t groups_rank = int64_t{c_.o_groups} * c_.o_lora_rank;
    AttentionWeights w;
    w.wq_a = in_.Matrix(at + "wq_a.weight", c_.q_lora_rank, c_.hidden_size);
    w.wq_b = in_.Matrix(at + "wq_b.weight", heads_width, c_.q_lora_rank);
    w.wkv = in_.Matrix(at + "wkv.weight", c_.head_dim, c_.hidden_size);
    w.wo_a = in_.Matrix(at + "wo_a.weight", groups_rank, heads_width / c_.o_groups);
    w.wo_b = in_.Matrix(at + "wo_b.weight", c_.hidden_size, groups_rank);
    w.q_norm = in_.Vector(at + "q_norm.weight", {c_.q_lora_rank});
    w.kv_norm = in_.Vector(at + "kv_norm.weight", {c_.head_dim});
    w.sink = in_.Vector(at + "attn_sink", {c_.num_attention_heads});
    // A schedule that is off by one would otherwise run and answer nonsense (model.md 11.9).
    const std::string schedule =
        " in a layer of ratio " + std::to_string(static_cast<int>(kind)) + " of the config";
    if (kind != LayerKind::kWindow) {
      w.compressor = Compressor(at + "compressor.", static_cast<int>(kind), c_.head_dim);
    } else {
      in_.RefuseIfPresent(at + "compressor.ape", "no compressor" + schedule);
    }
    if (kind == LayerKind::kCsa) {
      const std::string indexer = at + "indexer.";
      w.indexer.wq_b =
          in_.Matrix(indexer + "wq_b.weight", int64_t{c_.index_n_heads} * c_.index_head_dim, c_.q_lora_rank);
      w.indexer.weights_proj = in_.Matrix(indexer + "weights_proj.weight", c_.index_n_heads, c_.hidden_size);
      w.indexer.compressor = Compressor(indexer + "compressor.", 4, c_.index_head_dim);
    } else {
      in_.RefuseIfPresent(at + "indexer.wq_b.weight", "no indexer" + schedule);
    }
    return w;
  }

  /// Ratio 4 pools over two windows, so its rows come in two halves (model.md 3.6).
  CompressorWeights Compressor(const std::string& at, int ratio, int head_dim) {
    const int64_t width = int64_t{ratio == 4 ? 2 : 1} * head_dim;
    CompressorWeights w;
    w.wkv = in_.Matrix(at + "wkv.weight", width, c_.hidden_size);
    w.wgate = in_.Matrix(at + "wgate.weight", width, c_.hidden_size);
    w.ape = in_.Vector(at + "ape", {ratio, width});
    w.norm = in_.Vector(at + "norm.weight", {head_dim});
    return w;
  }

  MoeWeights Moe(const std::string& at, bool hash_layer) {
    MoeWeights w;
    w.gate = in_.Matrix(at + "gate.weight", c_.n_routed_experts, c_.hidden_size);
    if (hash_layer) {
      w.tid2eid =
          in_.IdTable(at + "gate.tid2eid", c_.vocab_size, c_.num_experts_per_tok, c_.n_routed_experts);
      in_.Ignore(at + "gate.bias");  // some files have one; it has no use (model.md 7.3.6)
    } else {
      w.bias = in_.Vector(at + "gate.bias", {c_.n_routed_experts});
      in_.RefuseIfPresent(at + "gate.tid2eid",
                          "no table of experts in a layer that the config routes by score");
    }
    w.shared = Expert(at + "shared_experts.", /*routed=*/false);
    w.experts.resize(c_.n_routed_experts);
    const bool stacked = in_.Has(at + "experts.gate_up_proj");
    for (int expert = 0; expert < c_.n_routed_experts && in_.ok(); ++expert) {
      in_.set_owned(expert >= selection_.expert_begin && expert < selection_.expert_end);
      w.experts[expert] = stacked ? ExpertOfStack(at + "experts.", expert)
                                  : Expert(at + "experts." + std::to_string(expert) + ".", /*routed=*/true);
    }
    in_.set_owned(selection_.dense);
    return w;
  }

  ExpertWeights Expert(const std::string& at, bool routed) {
    ExpertWeights w;
    w.w1 = in_.Matrix(at + "w1.weight", c_.moe_intermediate_size, c_.hidden_size, routed);
    w.w3 = in_.Matrix(at + "w3.weight", c_.moe_intermediate_size, c_.hidden_size, routed);
    w.w2 = in_.Matrix(at + "w2.weight", c_.hidden_size, c_.moe_intermediate_size, routed);
    return w;
  }

  /// transformers' state_dict: gate_up_proj [E, 2F, D] with the gate's rows first, down_proj [E, D, F]
  /// (model.md 7.1). An FP8 scale block of gate_up_proj may lie across the two halves, so w3 starts inside it.
  ExpertWeights ExpertOfStack(const std::string& at, int expert) {
    const TensorReader::Part part{expert, c_.n_routed_experts};
    const int64_t width = c_.moe_intermediate_size;
    const MatrixView both = in_.Matrix(at + "gate_up_proj", 2 * width, c_.hidden_size, /*routed=*/true, part);
    ExpertWeights w;
    if (both.present()) {
      w.w1 = both.RowSlice(0, width);
      w.w3 = both.RowSlice(width, width);
    }
    w.w2 = in_.Matrix(at + "down_proj", c_.hidden_size, width, /*routed=*/true, part);
    return w;
  }

  const ModelConfig& c_;
  const WeightSelection selection_;
  TensorReader& in_;
};

/// MTP and draft layers are left out by design; anything else that nobody asked for may mean that the config
/// and the weights do not belong together, and is worth a line.
void Report(const std::string& directory, const CheckpointSummary& summary) {
  const TensorGroup& mtp = summary.group(TensorGroupId::kMtp);
  LogInfo(directory + ": " + std::string(NameSchemeText(summary.names)) + " names, routed experts " +
          summary.group(TensorGroupId::kRouted).DTypes());
  if (mtp.tensors > 0) {
    LogInfo(directory + ": " + std::to_string(mtp.tensors) + " tensors of " +
            (summary.dspark ? "a DSpark draft" : "MTP") + " are ignored");
  }
  if (summary.unexpected.empty()) return;
  std::string first;
  for (size_t i = 0; i < summary.unexpected.size() && i < 5; ++i) first += " '" + summary.unexpected[i] + "'";
  LogWarning(directory + ": " + std::to_string(summary.unexpected.size()) +
             " unexpected tensors are not used:" + first + (summary.unexpected.size() > 5 ? " ..." : ""));
}

}  // namespace

StatusOr<std::shared_ptr<const ModelWeights>> ModelWeights::Load(const std::string& directory,
                                                                 const WeightSelection& selection) {
  auto weights = std::make_shared<ModelWeights>();
  ASSIGN_OR_RETURN(weights->config, ModelConfig::Load(directory));
  ASSIGN_OR_RETURN(std::shared_ptr<Checkpoint> checkpoint, Checkpoint::Open(directory));
  const int experts = weights->config.n_routed_experts;
  WeightSelection wanted = selection;
  if (wanted.expert_end == -1) wanted.expert_end = experts;
  if (wanted.expert_begin < 0 || wanted.expert_begin > wanted.expert_end || wanted.expert_end > experts) {
    return InvalidArgument(directory + ": experts: wanted a range inside [0, " + std::to_string(experts) +
                           "], got [" + std::to_string(wanted.expert_begin) + ", " +
                           std::to_string(wanted.expert_end) + ")");
  }
  Sha256 hash;
  hash.Update(weights->config.Canonical());
  RETURN_IF_ERROR(checkpoint->AddFingerprint(&hash));
  weights->fingerprint = hash.HexDigest();
  TensorReader reader(checkpoint.get(), TensorReader::Mode::kLoad);
  WeightLoader(weights->config, wanted, &reader).Load(weights.get());
  RETURN_IF_ERROR(reader.status());
  Report(directory, Summarise(weights->config, *checkpoint, reader.asked()));
  weights->checkpoint = std::move(checkpoint);
  return std::shared_ptr<const ModelWeights>(std::move(weights));
}

CheckpointSummary InspectCheckpoint(const ModelConfig& config, Checkpoint& checkpoint) {
  TensorReader reader(&checkpoint, TensorReader::Mode::kHeaders);
  ModelWeights nothing;
  WeightLoader(config, {true, 0, config.n_routed_experts}, &reader).Load(&nothing);
  CheckpointSummary summary = Summarise(config, checkpoint, reader.asked());
  summary.refusals = reader.refusals();
  return summary;
}

}  // namespace cachalot

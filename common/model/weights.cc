#include "common/model/weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <unordered_set>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/loader/checkpoint.h"
#include "common/loader/sha256.h"

namespace cachalot {
namespace {

using Tensor = Checkpoint::Tensor;

constexpr int kFp8Block = 128, kFp4Block = 32;  // spec 7.2

// Expert scales above this size are checked at both ends only: all of Flash's are 8 GB, most of which a
// worker may never touch.
constexpr size_t kWholeScaleCheck = 64 << 10, kScaleSample = 64;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Walks the tensors of spec 7.1 in one fixed order. What the role does not own is only remembered by name,
/// so that every role can tell an unexpected tensor from one of another role. The first refusal is kept and
/// turns the rest of the walk into no-ops: the walk itself reads as the list of tensors that it is.
class WeightLoader {
 public:
  WeightLoader(const ModelConfig& config, const WeightSelection& selection, Checkpoint* checkpoint)
      : c_(config), selection_(selection), checkpoint_(checkpoint) {}

  Status Load(ModelWeights* out) {
    on_ = selection_.dense;
    out->embed = Matrix("embed.weight", c_.vocab_size, c_.hidden_size);
    out->head = Matrix("head.weight", c_.vocab_size, c_.hidden_size);
    out->norm = Vector("norm.weight", {c_.hidden_size});
    out->hc_head = HyperConnection("hc_head_", c_.hc_mult, 1);
    for (int layer = 0; layer < c_.num_hidden_layers && status_.ok(); ++layer)
      out->layers.push_back(Layer(layer));
    if (!status_.ok()) return status_;
    ReportUnexpected();
    return OkStatus();
  }

 private:
  LayerWeights Layer(int layer) {
    const std::string at = "layers." + std::to_string(layer) + ".";
    LayerWeights w;
    on_ = selection_.dense;
    w.hc_attn = HyperConnection(at + "hc_attn_", c_.hc_mix(), 3);
    w.hc_ffn = HyperConnection(at + "hc_ffn_", c_.hc_mix(), 3);
    w.attn_norm = Vector(at + "attn_norm.weight", {c_.hidden_size});
    w.ffn_norm = Vector(at + "ffn_norm.weight", {c_.hidden_size});
    w.attn = Attention(at + "attn.", c_.layers[layer]);
    w.moe = Moe(at + "ffn.", c_.hash_layer[layer]);
    return w;
  }

  HyperConnectionWeights HyperConnection(const std::string& at, int rows, int scales) {
    HyperConnectionWeights w;
    w.fn = MatrixF32(at + "fn", rows, int64_t{c_.hc_mult} * c_.hidden_size);
    w.base = Vector(at + "base", {rows});
    w.scale = Vector(at + "scale", {scales});
    return w;
  }

  AttentionWeights Attention(const std::string& at, LayerKind kind) {
    const int64_t heads_width = int64_t{c_.num_attention_heads} * c_.head_dim;
    const int64_t groups_rank = int64_t{c_.o_groups} * c_.o_lora_rank;
    AttentionWeights w;
    w.wq_a = Matrix(at + "wq_a.weight", c_.q_lora_rank, c_.hidden_size);
    w.wq_b = Matrix(at + "wq_b.weight", heads_width, c_.q_lora_rank);
    w.wkv = Matrix(at + "wkv.weight", c_.head_dim, c_.hidden_size);
    w.wo_a = Matrix(at + "wo_a.weight", groups_rank, heads_width / c_.o_groups);
    w.wo_b = Matrix(at + "wo_b.weight", c_.hidden_size, groups_rank);
    w.q_norm = Vector(at + "q_norm.weight", {c_.q_lora_rank});
    w.kv_norm = Vector(at + "kv_norm.weight", {c_.head_dim});
    w.sink = Vector(at + "attn_sink", {c_.num_attention_heads});
    if (kind != LayerKind::kWindow) {
      w.compressor = Compressor(at + "compressor.", static_cast<int>(kind), c_.head_dim);
    }
    if (kind == LayerKind::kCsa) {
      const std::string indexer = at + "indexer.";
      w.indexer.wq_b =
          Matrix(indexer + "wq_b.weight", int64_t{c_.index_n_heads} * c_.index_head_dim, c_.q_lora_rank);
      w.indexer.weights_proj = Matrix(indexer + "weights_proj.weight", c_.index_n_heads, c_.hidden_size);
      w.indexer.compressor = Compressor(indexer + "compressor.", 4, c_.index_head_dim);
    }
    return w;
  }

  /// Ratio 4 pools over two windows, so its rows come in two halves (spec 3.6).
  CompressorWeights Compressor(const std::string& at, int ratio, int head_dim) {
    const int64_t width = int64_t{ratio == 4 ? 2 : 1} * head_dim;
    CompressorWeights w;
    w.wkv = Matrix(at + "wkv.weight", width, c_.hidden_size);
    w.wgate = Matrix(at + "wgate.weight", width, c_.hidden_size);
    w.ape = Vector(at + "ape", {ratio, width});
    w.norm = Vector(at + "norm.weight", {head_dim});
    return w;
  }

  MoeWeights Moe(const std::string& at, bool hash_layer) {
    MoeWeights w;
    w.gate = Matrix(at + "gate.weight", c_.n_routed_experts, c_.hidden_size);
    if (hash_layer) {
      w.tid2eid = ExpertTable(at + "gate.tid2eid");
      expected_.insert(at + "gate.bias");  // some files have one; it has no use (spec 7.3.6)
    } else {
      w.bias = Vector(at + "gate.bias", {c_.n_routed_experts});
    }
    w.shared = Expert(at + "shared_experts.");
    w.experts.resize(c_.n_routed_experts);
    for (int expert = 0; expert < c_.n_routed_experts && status_.ok(); ++expert) {
      on_ = expert >= selection_.expert_begin && expert < selection_.expert_end;
      w.experts[expert] = Expert(at + "experts." + std::to_string(expert) + ".", /*routed=*/true);
    }
    on_ = selection_.dense;
    return w;
  }

  ExpertWeights Expert(const std::string& at, bool routed = false) {
    ExpertWeights w;
    w.w1 = Matrix(at + "w1.weight", c_.moe_intermediate_size, c_.hidden_size, routed);
    w.w3 = Matrix(at + "w3.weight", c_.moe_intermediate_size, c_.hidden_size, routed);
    w.w2 = Matrix(at + "w2.weight", c_.hidden_size, c_.moe_intermediate_size, routed);
    return w;
  }

  void Refuse(const std::string& where, const std::string& wanted, const std::string& got) {
    if (status_.ok()) status_ = InvalidArgument(where + ": wanted " + wanted + ", got " + got);
  }

  /// The tensor if the role owns it; nullptr: not owned, or refused.
  const Tensor* Find(const std::string& name) {
    expected_.insert(name);
    if (!on_ || !status_.ok()) return nullptr;
    const Tensor* tensor = checkpoint_->Find(name);
    if (!tensor)
      Refuse(checkpoint_->directory() + ": tensor '" + name + "'", "it in the checkpoint", "no such tensor");
    return tensor;
  }

  /// Refuses a tensor of another dtype than the listed ones or another shape.
  bool Check(const Tensor& tensor, std::initializer_list<std::string_view> dtypes,
             std::vector<int64_t> shape) {
    const SafetensorsEntry& entry = *tensor.entry;
    if (std::find(dtypes.begin(), dtypes.end(), entry.dtype) == dtypes.end()) {
      std::string wanted = "dtype";
      for (std::string_view dtype : dtypes)
        wanted += (dtype == *dtypes.begin() ? " " : " or ") + std::string(dtype);
      Refuse(tensor.Where(), wanted, std::string(entry.dtype));
    } else if (entry.shape != shape) {
      Refuse(tensor.Where(), "shape " + ShapeText(shape),
             ShapeText(entry.shape) + " " + std::string(entry.dtype));
    }
    return status_.ok();
  }

  std::span<const std::byte> Map(const Tensor& tensor, size_t alignment) {
    if (!status_.ok()) return {};
    auto bytes = checkpoint_->Map(tensor, alignment);
    if (bytes.ok()) return *bytes;
    status_ = bytes.status();
    return {};
  }

  /// A matrix in whatever format it is stored in: the dtype decides, not the name and not the config
  /// (spec 7.3.4).
  MatrixView Matrix(const std::string& name, int64_t rows, int64_t cols, bool routed = false) {
    const std::string scale_name = name.substr(0, name.size() - std::string_view("weight").size()) + "scale";
    const Tensor* stored = checkpoint_->Find(name);
    const std::string_view dtype = stored ? stored->entry->dtype : "";
    const bool fp8 = dtype == "F8_E4M3", fp4 = dtype == "I8";
    if (fp8 || fp4) expected_.insert(scale_name);
    const Tensor* tensor = Find(name);
    if (!tensor) return {};

    MatrixView view{.rows = rows, .cols = cols};
    if (fp4 && cols % 2 != 0) Refuse(tensor->Where(), "an even number of FP4 columns", std::to_string(cols));
    if (!Check(*tensor, {"F32", "BF16", "F8_E4M3", "I8"}, {rows, fp4 ? cols / 2 : cols})) return {};
    view.dtype = fp4 ? DType::kFP4 : fp8 ? DType::kF8E4M3 : dtype == "BF16" ? DType::kBF16 : DType::kF32;
    if (fp8) view.scale = Scale(scale_name, rows, cols, kFp8Block, kFp8Block, routed);
    if (fp4) view.scale = Scale(scale_name, rows, cols, 1, kFp4Block, routed);
    view.data = Map(*tensor, dtype == "F32" ? 4 : dtype == "BF16" ? 2 : 1).data();
    return status_.ok() ? view : MatrixView{};
  }

  BlockScale Scale(const std::string& name, int64_t rows, int64_t cols, int block_rows, int block_cols,
                   bool routed) {
    const Tensor* tensor = Find(name);
    if (!tensor) return {};
    const std::vector<int64_t> shape = {CeilDiv(rows, block_rows), CeilDiv(cols, block_cols)};
    // Base checkpoints may have fp32 scales on FP8 (spec 7.3.5); FP4 always comes with e8m0.
    const bool ok =
        block_rows == 1 ? Check(*tensor, {"F8_E8M0"}, shape) : Check(*tensor, {"F8_E8M0", "F32"}, shape);
    if (!ok) return {};
    BlockScale scale{.block_rows = block_rows, .block_cols = block_cols};
    scale.dtype = tensor->entry->dtype == "F32" ? DType::kF32 : DType::kF8E8M0;
    const std::span<const std::byte> bytes = Map(*tensor, scale.dtype == DType::kF32 ? 4 : 1);
    scale.data = bytes.data();
    if (routed && bytes.size() > kWholeScaleCheck) {
      CheckScales(*tensor, scale.dtype, bytes.first(kScaleSample));
      CheckScales(*tensor, scale.dtype, bytes.last(kScaleSample));
    } else {
      CheckScales(*tensor, scale.dtype, bytes);
    }
    return scale;
  }

  void CheckScales(const Tensor& tensor, DType dtype, std::span<const std::byte> bytes) {
    if (dtype == DType::kF8E8M0) {
      const bool has_nan = std::find(bytes.begin(), bytes.end(), std::byte{255}) != bytes.end();
      if (has_nan) Refuse(tensor.Where(), "scales below 255", "255, which is NaN");
      return;
    }
    for (size_t i = 0; i + 4 <= bytes.size(); i += 4) {
      float value;
      std::memcpy(&value, bytes.data() + i, 4);
      if (!std::isfinite(value)) return Refuse(tensor.Where(), "finite scales", std::to_string(value));
    }
  }

  /// The hyper-connections' projection is fp32 for every kernel: other formats are widened, it is small.
  MatrixView MatrixF32(const std::string& name, int64_t rows, int64_t cols) {
    const Tensor* tensor = Find(name);
    if (!tensor || !Check(*tensor, {"F32", "BF16", "F16"}, {rows, cols})) return {};
    MatrixView view{.dtype = DType::kF32, .rows = rows, .cols = cols};
    if (tensor->entry->dtype == "F32") {
      view.data = Map(*tensor, 4).data();
    } else {
      const std::vector<float> wide = Widen(*tensor);
      const std::span<std::byte> copy = checkpoint_->Allocate(wide.size() * sizeof(float));
      std::memcpy(copy.data(), wide.data(), copy.size());
      view.data = copy.data();
    }
    return status_.ok() ? view : MatrixView{};
  }

  /// Widened to fp32, row-major; every value finite (spec 7.4).
  std::vector<float> Vector(const std::string& name, std::vector<int64_t> shape) {
    const Tensor* tensor = Find(name);
    if (!tensor || !Check(*tensor, {"F32", "BF16", "F16"}, std::move(shape))) return {};
    std::vector<float> values = Widen(*tensor);
    for (float value : values) {
      if (!std::isfinite(value)) Refuse(tensor->Where(), "finite values", std::to_string(value));
    }
    return values;
  }

  std::vector<float> Widen(const Tensor& tensor) {
    const std::span<const std::byte> bytes = Map(tensor, 1);
    const std::string_view dtype = tensor.entry->dtype;
    const size_t width = dtype == "F32" ? 4 : 2;
    std::vector<float> values(bytes.size() / width);
    for (size_t i = 0; i < values.size(); ++i) {
      if (width == 4) {
        std::memcpy(&values[i], bytes.data() + i * 4, 4);
      } else {
        uint16_t bits;
        std::memcpy(&bits, bytes.data() + i * 2, 2);
        values[i] = dtype == "BF16" ? BF16ToFloat(bits) : F16ToFloat(bits);
      }
    }
    return values;
  }

  /// tid2eid [vocab, K]: the experts of a token id, distinct in each row. int64 as released, int32 in
  /// converted files.
  std::vector<int32_t> ExpertTable(const std::string& name) {
    const int k = c_.num_experts_per_tok;
    const Tensor* tensor = Find(name);
    if (!tensor || !Check(*tensor, {"I64", "I32"}, {c_.vocab_size, k})) return {};
    const std::span<const std::byte> bytes = Map(*tensor, 1);
    const size_t width = tensor->entry->dtype == "I64" ? 8 : 4, count = bytes.size() / width;
    std::vector<int32_t> table(count);
    std::vector<int64_t> last_row(c_.n_routed_experts, -1);  // where each expert was seen last
    for (size_t i = 0; i < count; ++i) {
      int64_t id = 0;
      if (width == 8) {
        std::memcpy(&id, bytes.data() + i * 8, 8);
      } else {
        int32_t narrow;
        std::memcpy(&narrow, bytes.data() + i * 4, 4);
        id = narrow;
      }
      const int64_t row = static_cast<int64_t>(i) / k;
      const bool known = id >= 0 && id < c_.n_routed_experts;
      if (!known || last_row[id] == row) {
        Refuse(tensor->Where() + " row " + std::to_string(row),
               "distinct expert ids in [0, " + std::to_string(c_.n_routed_experts) + ")",
               std::to_string(id) + (known ? " twice" : ""));
        return {};
      }
      last_row[id] = row;
      table[i] = static_cast<int32_t>(id);
    }
    return table;
  }

  /// MTP and draft layers are left out by design; anything else that nobody asked for may mean that the
  /// config and the weights do not belong together, and is worth a line.
  void ReportUnexpected() {
    std::string first;
    int count = 0;
    for (const std::string& name : checkpoint_->OfficialNames()) {
      if (name.starts_with("mtp.") || expected_.count(name)) continue;
      if (++count <= 5) first += " '" + name + "'";
    }
    if (count == 0) return;
    LogWarning(checkpoint_->directory() + ": " + std::to_string(count) +
               " unexpected tensors are not used:" + first + (count > 5 ? " ..." : ""));
  }

  const ModelConfig& c_;
  const WeightSelection selection_;
  Checkpoint* const checkpoint_;
  Status status_;
  bool on_ = true;  // the role owns the tensors that are being walked
  std::unordered_set<std::string> expected_;
};

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
  RETURN_IF_ERROR(WeightLoader(weights->config, wanted, checkpoint.get()).Load(weights.get()));
  weights->checkpoint = std::move(checkpoint);
  return std::shared_ptr<const ModelWeights>(std::move(weights));
}

}  // namespace cachalot

#include "common/model/forward.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/kernels/ref/dequantise.h"
#include "common/model/hyper_connection.h"

namespace cachalot {

KvModelShape KvShapeOf(const ModelConfig& config, kernels::NumericMode mode) {
  KvModelShape shape;
  for (LayerKind kind : config.layers)
    shape.layers.push_back(kind == LayerKind::kCsa   ? KvLayerKind::kCsa
                           : kind == LayerKind::kHca ? KvLayerKind::kHca
                                                     : KvLayerKind::kWindow);
  shape.head_dim = config.head_dim;
  shape.index_head_dim = config.index_head_dim;
  shape.sliding_window = config.sliding_window;
  shape.kv_type = mode == kernels::NumericMode::kBf16 ? DType::kBF16 : DType::kF32;
  return shape;
}

std::vector<std::vector<ExpertMatrices>> ExpertTable(const ModelWeights& weights) {
  std::vector<std::vector<ExpertMatrices>> table;
  for (const LayerWeights& layer : weights.layers) table.push_back(layer.moe.experts);
  return table;
}

Model::Model(std::shared_ptr<const ModelWeights> weights, const kernels::KernelTable& kernels, ThreadPool& threads)
    : weights_(std::move(weights)),
      kernels_(kernels),
      threads_(threads),
      rope_main_(weights_->config, false),
      rope_compress_(weights_->config, true),
      groups_(GroupRanges::Make(weights_->config.n_routed_experts, kReductionGroups)) {}

Status Model::LayOut(std::span<const Segment> segments) {
  Scratch& s = scratch_;
  s.ids.clear();
  s.positions.clear();
  s.segment.clear();
  s.first_row.assign(1, 0);
  s.logit_rows.clear();
  first_logit_.assign(1, 0);
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    CHECK(!segment.ids.empty());
    CHECK(segment.kv->whole());
    CHECK(segment.kv->tokens() + static_cast<int64_t>(segment.ids.size()) <= segment.kv->capacity());
    for (size_t t = 0; t < segment.ids.size(); ++t) {
      const int32_t id = segment.ids[t];
      if (id < 0 || id >= config().vocab_size)
        return OutOfRange("token id " + std::to_string(id) + " is not in the vocabulary of " +
                          std::to_string(config().vocab_size));
      if (segment.all_logits || t + 1 == segment.ids.size())
        s.logit_rows.push_back(static_cast<int64_t>(s.ids.size()));
      s.ids.push_back(id);
      s.positions.push_back(segment.kv->tokens() + static_cast<int64_t>(t));
      s.segment.push_back(static_cast<int32_t>(i));
    }
    s.first_row.push_back(static_cast<int64_t>(s.ids.size()));
    first_logit_.push_back(static_cast<int64_t>(s.logit_rows.size()));
  }
  return OkStatus();
}

StatusOr<StepLogits> Model::Forward(std::span<const Segment> segments, ExpertBackend& experts) {
  CHECK(!segments.empty());
  RETURN_IF_ERROR(LayOut(segments));
  for (const Segment& segment : segments) segment.kv->BeginWrite(static_cast<int64_t>(segment.ids.size()));
  Scratch& s = scratch_;
  Step step{config(), kernels_, threads_, rope_main_, rope_compress_, groups_, experts, segments, s};
  const int64_t T = step.rows(), H = config().hc_mult, D = config().hidden_size;
  for (int table = 0; table < 2; ++table) {
    const RopeTable& rope = table == 0 ? rope_main_ : rope_compress_;
    rope.Fill(s.positions, Room(s.cos[table], T * rope.half()), Room(s.sin[table], T * rope.half()));
  }
  float* h = Room(s.h, T * H * D);
  for (int64_t t = 0; t < T; ++t) {  // model.md 3.1: H identical copies of the embedding
    kernels::DequantiseRow(weights_->embed, s.ids[t], 0, D, h + t * H * D);
    step.Round(h + t * H * D, D);
    for (int64_t j = 1; j < H; ++j) std::copy_n(h + t * H * D, D, h + (t * H + j) * D);
  }
  for (int layer = 0; layer < config().num_hidden_layers; ++layer)
    RETURN_IF_ERROR(RunLayer(step, layer, weights_->layers[layer]));
  HcHead(step, *weights_);
  for (const Segment& segment : segments) segment.kv->Advance(static_cast<int64_t>(segment.ids.size()));
  return StepLogits{s.logits.data(), config().vocab_size, first_logit_};
}

}  // namespace cachalot

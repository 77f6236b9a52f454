#pragma once
// The forward pass of a ragged batch: any mix of prefill chunks and decode tokens (model.md 3).

#include <memory>
#include <span>

#include "common/model/layer.h"
#include "common/model/step.h"
#include "common/moe/local_experts.h"

namespace cachalot {

/// Logits of a step, valid until the next one.
struct StepLogits {
  const float* data = nullptr;  // [rows, vocab]
  int vocab = 0;
  std::span<const int64_t> first;  // [segments + 1]: rows of segment i are [first[i], first[i+1])

  std::span<const float> row(int64_t r) const { return {data + r * vocab, static_cast<size_t>(vocab)}; }
  std::span<const float> last(size_t segment) const { return row(first[segment + 1] - 1); }
};

/// `mode` decides the row type of the KV pools: fp32 or bf16.
KvModelShape KvShapeOf(const ModelConfig& config, kernels::NumericMode mode = kernels::NumericMode::kExact);

/// The routed experts of `weights` by layer and id, for LocalExperts and the expert service.
std::vector<std::vector<ExpertMatrices>> ExpertTable(const ModelWeights& weights);

/// One per step thread; not thread-safe.
class Model {
 public:
  Model(std::shared_ptr<const ModelWeights> weights, const kernels::KernelTable& kernels, ThreadPool& threads);

  /// Runs every segment's tokens and advances its KV. OUT_OF_RANGE for an id outside the vocabulary, nothing
  /// done. When the experts fail, no KV has advanced: a segment of up to 1 + draft tokens (of the KV layout)
  /// may simply be run again, its rows are written again in place; a longer one must restart its sequence,
  /// since its rings have moved on (SequenceKv::whole, CHECKed). A verify step is a segment of 1 + k tokens
  /// with all_logits, then SequenceKv::Rollback to what was accepted; every row and logit of it has the bits
  /// of one-token steps (model.md 4.2).
  StatusOr<StepLogits> Forward(std::span<const Segment> segments, ExpertBackend& experts);

  const ModelConfig& config() const { return weights_->config; }
  const ModelWeights& weights() const { return *weights_; }
  const kernels::KernelTable& kernels() const { return kernels_; }
  ThreadPool& threads() { return threads_; }

 private:
  Status LayOut(std::span<const Segment> segments);

  std::shared_ptr<const ModelWeights> weights_;
  const kernels::KernelTable& kernels_;
  ThreadPool& threads_;
  RopeTable rope_main_, rope_compress_;
  GroupRanges groups_;
  Scratch scratch_;
  std::vector<int64_t> first_logit_;
};

}  // namespace cachalot

#pragma once
// The dense half of a worker over the tiny oracle model: what asks experts.

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/cluster/compat.h"
#include "common/model/forward.h"
#include "tests/support/oracle.h"

namespace cachalot::testing {

inline std::string TinyDirectory() { return CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny"; }

class Worker {
 public:
  Worker() : pools_(KvLayout(KvShapeOf(weights_->config)), 2, 4096), model_(weights_, kernels_, threads_) {}

  /// Logits of every id, `chunk` ids a step.
  StatusOr<std::vector<float>> Run(ExpertBackend& experts, std::span<const int32_t> ids, size_t chunk) {
    SequenceKv kv = *pools_.Reserve(static_cast<int64_t>(ids.size()));
    std::vector<float> all;
    for (size_t at = 0; at < ids.size(); at += chunk) {
      const Segment segment{&kv, ids.subspan(at, std::min(chunk, ids.size() - at)), true};
      ASSIGN_OR_RETURN(const StepLogits logits, model_.Forward({&segment, 1}, experts));
      all.insert(all.end(), logits.data, logits.data + logits.first[1] * logits.vocab);
    }
    return all;
  }
  std::vector<float> RunLocal() {
    LocalExperts local(ExpertTable(*weights_), kernels_, threads_, weights_->config.swiglu_limit);
    return *Run(local, prompt_, prompt_.size());
  }

  const std::vector<int32_t>& prompt() const { return prompt_; }
  v1::Compat compat() const { return MakeCompat(*weights_, KvLayout(KvShapeOf(weights_->config)), kernels_); }
  const ModelConfig& model() const { return weights_->config; }
  int experts() const { return model().n_routed_experts; }

 private:
  const std::vector<int32_t> prompt_ = OracleCase::Load(TinyDirectory())->input_ids;
  std::shared_ptr<const ModelWeights> weights_ = *ModelWeights::Load(TinyDirectory(), WeightSelection::All());
  const kernels::KernelTable& kernels_ = **kernels::SelectKernels("auto");
  ThreadPool threads_{1};
  BlockPools pools_;
  Model model_;
};

}  // namespace cachalot::testing

#pragma once
// A model on one back end with its own KV, for tests that run it step by step.

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/model/forward.h"

namespace cachalot::testing {

class TestEngine {
 public:
  TestEngine(const std::string& directory, const kernels::KernelTable& kernels, int threads = 1,
             int64_t kv_tokens = 8192)
      : threads_(threads), weights_(*ModelWeights::Load(directory, WeightSelection::All())),
        model_(weights_, kernels, threads_),
        pools_(KvLayout(KvShapeOf(weights_->config, kernels.mode)), 20, kv_tokens),
        experts_(ExpertTable(*weights_), kernels, threads_, weights_->config.swiglu_limit) {}

  SequenceKv NewSequence(int64_t tokens) { return *pools_.Reserve(tokens); }

  /// Logits of every id, `chunk` ids a step.
  std::vector<float> Run(SequenceKv& kv, std::span<const int32_t> ids, size_t chunk,
                         ChoiceTrace* choices = nullptr) {
    std::vector<float> all;
    for (size_t at = 0; at < ids.size(); at += chunk) {
      const Segment segment{&kv, ids.subspan(at, std::min(chunk, ids.size() - at)), true, choices};
      const auto logits = model_.Forward({&segment, 1}, experts_);
      EXPECT_TRUE(logits.ok()) << logits.status();
      all.insert(all.end(), logits->data, logits->data + logits->first[1] * logits->vocab);
    }
    return all;
  }

  Model& model() { return model_; }
  ExpertBackend& experts() { return experts_; }
  const ModelConfig& config() const { return weights_->config; }
  const KvLayout& layout() const { return pools_.layout(); }

 private:
  ThreadPool threads_;
  std::shared_ptr<const ModelWeights> weights_;
  Model model_;
  BlockPools pools_;
  LocalExperts experts_;
};

}  // namespace cachalot::testing

#pragma once
// The expert back end of one process: `--experts=local` and the embedded mode.

#include <vector>

#include "common/moe/expert_backend.h"
#include "common/moe/expert_ffn.h"

namespace cachalot {

class LocalExperts final : public ExpertBackend {
 public:
  /// `layers[l]` has every expert of layer l, by id; the matrices' memory must outlive this.
  LocalExperts(std::vector<std::vector<ExpertMatrices>> layers, const kernels::KernelTable& kernels,
               ThreadPool& threads, float swiglu_limit)
      : layers_(std::move(layers)), ffn_(kernels, threads, swiglu_limit) {}

  Status Begin(const ExpertCall& call) override {
    call_ = call;
    return OkStatus();
  }
  Status Wait() override {
    ffn_.Run(layers_[call_.layer], call_.plan->assignments, call_.x, call_.hidden, call_.partials,
             call_.plan->slots());
    return OkStatus();
  }

 private:
  std::vector<std::vector<ExpertMatrices>> layers_;
  ExpertFfn ffn_;
  ExpertCall call_;
};

}  // namespace cachalot

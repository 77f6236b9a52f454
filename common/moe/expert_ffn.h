#pragma once
// The routed experts' arithmetic, shared by the local back end and the expert service, so that both give the same bits.

#include <span>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/kernels/kernels.h"
#include "common/moe/dispatch_plan.h"
#include "common/moe/expert_matrices.h"

namespace cachalot {

class ExpertFfn {
 public:
  ExpertFfn(const kernels::KernelTable& kernels, ThreadPool& threads, float swiglu_limit)
      : kernels_(kernels), threads_(threads), limit_(swiglu_limit) {}

  /// For every assignment, in ascending (expert, row): partials[slot] += weight * expert(x[row]); the first expert of
  /// a slot sets it. x [rows, hidden], partials [slots, hidden]. `experts` is indexed by expert id; all ids in the
  /// assignments must be present.
  void Run(std::span<const ExpertMatrices> experts, std::span<const ExpertAssignment> assignments, const float* x,
           int64_t hidden, float* partials, int64_t slots);

 private:
  const kernels::KernelTable& kernels_;
  ThreadPool& threads_;
  const float limit_;
  std::vector<float> rows_, gate_, up_, y_, weight_;
  std::vector<char> seen_;
};

}  // namespace cachalot

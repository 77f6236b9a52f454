#include "common/moe/expert_ffn.h"

#include <algorithm>

#include "common/base/check.h"

namespace cachalot {

void ExpertFfn::Run(std::span<const ExpertMatrices> experts, std::span<const ExpertAssignment> assignments,
                    const float* x, int64_t hidden, float* partials, int64_t slots) {
  seen_.assign(slots, 0);
  for (size_t begin = 0; begin < assignments.size();) {
    size_t end = begin;
    while (end < assignments.size() && assignments[end].expert == assignments[begin].expert) ++end;
    const auto group = assignments.subspan(begin, end - begin);
    begin = end;

    const ExpertMatrices& expert = experts[group[0].expert];
    CHECK_MSG(expert.w1.present(), "expert " + std::to_string(group[0].expert) + " is not in this process");
    const int64_t n = static_cast<int64_t>(group.size()), width = expert.w1.rows;
    rows_.resize(std::max<size_t>(rows_.size(), n * hidden));
    y_.resize(std::max<size_t>(y_.size(), n * hidden));
    gate_.resize(std::max<size_t>(gate_.size(), n * width));
    up_.resize(std::max<size_t>(up_.size(), n * width));
    weight_.resize(std::max<size_t>(weight_.size(), n));
    for (int64_t i = 0; i < n; ++i) {
      std::copy_n(x + group[i].row * hidden, hidden, rows_.data() + i * hidden);
      weight_[i] = group[i].weight;
    }
    kernels_.linear({rows_.data(), hidden, expert.w1, gate_.data(), width, n}, threads_);
    kernels_.linear({rows_.data(), hidden, expert.w3, up_.data(), width, n}, threads_);
    kernels_.round(gate_.data(), n * width);
    kernels_.round(up_.data(), n * width);
    kernels_.swiglu({gate_.data(), up_.data(), weight_.data(), gate_.data(), n, width, limit_});
    kernels_.round(gate_.data(), n * width);
    kernels_.linear({gate_.data(), width, expert.w2, y_.data(), hidden, n}, threads_);
    kernels_.round(y_.data(), n * hidden);
    for (int64_t i = 0; i < n; ++i) {
      float* out = partials + group[i].slot * hidden;
      const float* y = y_.data() + i * hidden;
      if (seen_[group[i].slot]) {
        for (int64_t c = 0; c < hidden; ++c) out[c] += y[c];
      } else {
        std::copy_n(y, hidden, out);
        seen_[group[i].slot] = 1;
      }
    }
  }
  kernels_.round(partials, slots * hidden);  // what a wire carries, and so what every back end gives
}

}  // namespace cachalot

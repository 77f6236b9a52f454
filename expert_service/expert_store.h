#pragma once
// The routed experts that one expert service owns: shard i of N, a run of whole reduction groups of every MoE
// layer.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/model/weights.h"
#include "common/moe/expert_frame.h"

namespace cachalot {

/// "i/N" with 0 <= i < N and N a divisor of the reduction groups; INVALID_ARGUMENT says so.
struct ShardSpec {
  int shard = 0, shards = 1;
  static StatusOr<ShardSpec> Parse(const std::string& text);
};

class ExpertStore {
 public:
  /// Maps only the shard's tensors.
  static StatusOr<std::unique_ptr<ExpertStore>> Load(const std::string& directory, const ShardSpec& spec);

  const ModelWeights& weights() const { return *weights_; }
  const ModelConfig& config() const { return weights_->config; }
  const ShardSpec& spec() const { return spec_; }
  int expert_begin() const { return begin_; }
  int expert_end() const { return end_; }
  int layers() const { return static_cast<int>(layers_.size()); }
  /// Indexed by expert id; absent outside [expert_begin, expert_end).
  std::span<const ExpertMatrices> layer(int layer) const { return layers_[layer]; }
  /// What a call to this shard may ask for.
  ExpertCallLimits Limits(int64_t max_rows) const;

 private:
  std::shared_ptr<const ModelWeights> weights_;
  std::vector<std::vector<ExpertMatrices>> layers_;
  ShardSpec spec_;
  int begin_ = 0, end_ = 0;
};

}  // namespace cachalot

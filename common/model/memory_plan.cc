#include "common/model/memory_plan.h"

#include <algorithm>
#include <numeric>

#include "common/base/check.h"
#include "common/kv/pool_spec.h"
#include "common/model/forward.h"

namespace cachalot {
namespace {

constexpr int64_t kFloat = 4, kHalf = 2;  // bytes
constexpr int64_t kCsa = 4, kHca = 128;   // ratios

KvBytes PlanLayout(const ModelConfig& config, kernels::NumericMode mode, int64_t context) {
  const KvLayout layout(KvShapeOf(config, mode));
  KvBytes bytes;
  for (int p = 0; p < kPoolCount; ++p) {
    const PoolSpec& pool = layout.pool(static_cast<PoolTag>(p));
    if (pool.ring) {
      (pool.tag == PoolTag::kSwaKv ? bytes.window : bytes.state) += pool.block_bytes();
    } else {
      bytes.per_token += static_cast<double>(pool.block_bytes()) / (pool.rows_per_block * pool.ratio);
    }
  }
  bytes.total = layout.BytesFor(context);
  return bytes;
}

}  // namespace

WeightPlan PlanWeights(const ModelConfig& config, const CheckpointSummary& summary, int shards) {
  CHECK(shards >= 1 && kReductionGroups % shards == 0);
  CHECK(static_cast<int>(summary.expert_bytes.size()) == config.n_routed_experts);
  const auto& experts = summary.expert_bytes;
  WeightPlan plan;
  plan.dense = summary.DenseBytes();
  for (int shard = 0; shard < shards; ++shard) {
    const int groups = kReductionGroups / shards;
    const int begin = config.group_begin(shard * groups), end = config.group_begin((shard + 1) * groups);
    plan.shards.push_back(std::accumulate(experts.begin() + begin, experts.begin() + end, int64_t{0}));
  }
  plan.embedded = std::accumulate(plan.shards.begin(), plan.shards.end(), plan.dense);
  return plan;
}

KvPlan PlanKv(const ModelConfig& config, int64_t context) {
  CHECK(context >= 0);
  KvPlan plan;
  plan.fp32 = PlanLayout(config, kernels::NumericMode::kExact, context);
  plan.bf16 = PlanLayout(config, kernels::NumericMode::kBf16, context);

  const auto count = [&](LayerKind kind) {
    return static_cast<int64_t>(std::count(config.layers.begin(), config.layers.end(), kind));
  };
  const int64_t csa = count(LayerKind::kCsa), hca = count(LayerKind::kHca), d = config.head_dim;
  const int64_t both = d + config.index_head_dim;
  const int64_t rows = context / kCsa * csa * both * kHalf + context / kHca * hca * d * kHalf;
  plan.bf16_rows = rows + plan.bf16.window + plan.bf16.state;
  // c and g: one half of the window of ratio 4 before, both halves of the one that is open (model.md 4.1).
  const int64_t before = context >= kCsa ? kCsa : 0, csa_open = context % kCsa, hca_open = context % kHca;
  plan.bf16_minimal =
      rows + plan.bf16.window + (csa * 2 * (before + 2 * csa_open) * both + hca * 2 * hca_open * d) * kFloat;
  const auto text = [](int64_t value) { return std::to_string(value); };
  plan.bf16_formula = text(csa) + "*(" + text(d) + "+" + text(config.index_head_dim) + ")*2/4 + " +
                      text(hca) + "*" + text(d) + "*2/128";
  return plan;
}

}  // namespace cachalot

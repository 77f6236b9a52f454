#pragma once
// How much memory the roles of a cluster need for a checkpoint: weights by role, KV by sequence.

#include <cstdint>
#include <string>
#include <vector>

#include "common/model/config.h"
#include "common/model/weights_summary.h"

namespace cachalot {

/// Bytes of weights, in their stored formats.
struct WeightPlan {
  int64_t dense = 0;            // prefill and decode workers with remote experts
  std::vector<int64_t> shards;  // expert services, by shard: contiguous reduction groups
  int64_t embedded = 0;         // one process with everything
};

/// `shards` must divide kReductionGroups (CHECK).
WeightPlan PlanWeights(const ModelConfig& config, const CheckpointSummary& summary, int shards);

/// Bytes of KV for one sequence as KvLayout lays it out. Compressed rows grow with the context, the rest is
/// fixed.
struct KvBytes {
  double per_token = 0;  // amortised: rows come every 4 and 128 tokens
  int64_t window = 0;    // rings of raw rows
  int64_t state = 0;     // rings of fp32 compressor state
  int64_t total = 0;     // at the context, in whole blocks
};

struct KvPlan {
  KvBytes fp32, bf16;        // numeric modes exact and bf16
  int64_t bf16_rows = 0;     // model.md 4.5 "full": as bf16.total, but compressed rows counted singly
  int64_t bf16_minimal = 0;  // model.md 4.5 "min": with no more state than a continuation at the context reads
  std::string bf16_formula;  // of bf16.per_token, with this model's numbers (model.md 4.3)
};

/// For a sequence of `context` tokens >= 0 of the main model, without draft tokens.
KvPlan PlanKv(const ModelConfig& config, int64_t context);

}  // namespace cachalot

#pragma once
// The tokens of one step as messages for one router.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cachalot/v1/decode.pb.h"
#include "decode_worker/decode_flow.h"

namespace cachalot {

/// Routers take messages of 16 MiB: a step that carries the logits of many sequences comes in several.
inline constexpr size_t kStepBatchBytes = 8 << 20;

class StepBatches {
 public:
  /// No message gets larger than `limit` by the tokens in it, unless a single one is.
  explicit StepBatches(size_t limit) : limit_(limit) {}

  void Add(uint64_t handle, const TokenOut& token, bool with_logits);
  /// In the order of Add, without the load.
  std::vector<v1::StepBatch> Take();

 private:
  const size_t limit_;
  size_t bytes_ = 0;  // of the last one
  std::vector<v1::StepBatch> batches_;
};

}  // namespace cachalot

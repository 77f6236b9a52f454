#pragma once
// cos and sin of the rotary angles. The angle is the fp32 product position * inverse frequency, which is part of the
// model's numerics (model.md 5); its cosine and sine are taken in double and rounded once.

#include <cstdint>
#include <span>
#include <vector>

#include "common/model/config.h"

namespace cachalot {

class RopeTable {
 public:
  RopeTable(const ModelConfig& config, bool compress) : inverse_(InverseFrequencies(config, compress)) {}

  int half() const { return static_cast<int>(inverse_.size()); }
  /// cos, sin [positions, rope_dim/2].
  void Fill(std::span<const int64_t> positions, float* cos, float* sin) const;

 private:
  std::vector<float> inverse_;
};

}  // namespace cachalot

#pragma once
// The discrete choices of a forward pass: which experts a token went to, which entries its query attended to. Replayed,
// they make runs that differ only in rounding comparable: near a tie one rounding picks another expert, and what comes
// out is another function, not the same one less exactly (model.md 3.7).

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "common/base/check.h"

namespace cachalot {

/// Of one sequence. Thread-safe.
class ChoiceTrace {
 public:
  enum class Kind : uint8_t { kExperts, kEntries };

  /// From here on Apply gives back what was recorded.
  void Replay() { replay_ = true; }

  /// Recording: keeps `ids`. Replaying: replaces them and counts it when they differ as a set; CHECKs that the choice
  /// was recorded and has this size.
  void Apply(Kind kind, int layer, int64_t position, std::span<int32_t> ids);

  int64_t recorded() const { return static_cast<int64_t>(choices_.size()); }
  int64_t changed() const { return changed_; }

 private:
  struct Key {
    Kind kind;
    int layer;
    int64_t position;
    auto operator<=>(const Key&) const = default;
  };
  std::mutex mutex_;
  bool replay_ = false;
  int64_t changed_ = 0;
  std::map<Key, std::vector<int32_t>> choices_;
};

}  // namespace cachalot

#pragma once
// What a checkpoint holds, by its headers alone: who wrote it, how many tensors, parameters and bytes of
// what.

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/loader/checkpoint.h"
#include "common/model/config.h"

namespace cachalot {

enum class TensorGroupId : uint8_t {
  kEmbedHead,   // embed, head
  kAttention,   // attn.*, compressors and indexers included
  kRouter,      // gate.weight, gate.bias
  kTables,      // gate.tid2eid
  kShared,      // shared experts
  kRouted,      // routed experts
  kNorms,       // hyper-connections and the norms outside attention
  kMtp,         // MTP or DSpark layers, under either name: not used
  kUnused,      // gate.bias of hash layers
  kUnexpected,  // what no model of this config has: not used
};
inline constexpr int kTensorGroups = 10;
std::string_view TensorGroupName(TensorGroupId id);

struct TensorGroup {
  int64_t tensors = 0;
  int64_t parameters = 0;  // weights and biases: an FP4 pair counts twice, scales and id tables do not count
  int64_t bytes = 0;
  std::map<std::string, int64_t> dtype_bytes;  // stored dtype -> bytes

  std::string DTypes() const;  // "I8 + F8_E8M0", most bytes first
};

struct CheckpointSummary {
  NameScheme names = NameScheme::kReleased;
  bool stacked_experts = false;
  bool dspark = false;  // what kMtp holds is a DSpark draft (model.md 6.5)
  int files = 0;
  std::array<TensorGroup, kTensorGroups> groups;
  std::vector<int64_t> expert_bytes;    // [E] over all layers
  std::vector<std::string> unexpected;  // official names, sorted
  std::vector<std::string>
      refusals;  // of InspectCheckpoint: why the checkpoint would not load; values are not read

  const TensorGroup& group(TensorGroupId id) const { return groups[static_cast<int>(id)]; }
  TensorGroup Total() const;
  /// What a role maps: everything of the main model but routed experts.
  int64_t DenseBytes() const;
  int64_t MainParameters() const;  // without MTP and what is not used
};

/// `asked`: the names that a walk over the config's tensors asked for (TensorReader::asked).
CheckpointSummary Summarise(const ModelConfig& config, const Checkpoint& checkpoint,
                            const std::unordered_map<std::string, bool>& asked);

/// Checks names, dtypes and shapes against the config without mapping a byte.
CheckpointSummary InspectCheckpoint(const ModelConfig& config, Checkpoint& checkpoint);

}  // namespace cachalot

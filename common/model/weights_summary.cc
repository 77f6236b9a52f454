#include "common/model/weights_summary.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <set>

namespace cachalot {
namespace {

bool Contains(std::string_view name, std::string_view part) {
  return name.find(part) != std::string_view::npos;
}

/// The number behind `prefix`; -1: the name does not begin so.
int IndexBehind(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return -1;
  int index = -1;
  std::from_chars(name.data() + prefix.size(), name.data() + name.size(), index);
  return index;
}

bool IsDSpark(std::string_view name) { return Contains(name, ".markov_head."); }

/// Whether a block's tensor can only belong to an MTP or draft block (model.md 6.1, 6.5).
bool IsDraftOnly(std::string_view name) {
  for (std::string_view part : {".e_proj.", ".h_proj.", ".enorm.", ".hnorm."})
    if (Contains(name, part)) return true;
  return IsDSpark(name);
}

/// MTP blocks are named mtp.N, or as layers behind the last one (model.md 7.3.6). The latter only if the first of
/// them has what no main layer has: a config with too few layers must not make the rest of the model look
/// like MTP.
class DraftNames {
 public:
  DraftNames(const ModelConfig& config, const std::vector<std::string>& names)
      : layers_(config.num_hidden_layers) {
    for (const std::string& name : names)
      draft_layers_ |= IndexBehind(name, "layers.") == layers_ && IsDraftOnly(name);
  }
  bool Has(const std::string& name) const {
    return name.starts_with("mtp.") || (draft_layers_ && IndexBehind(name, "layers.") >= layers_);
  }

 private:
  const int layers_;
  bool draft_layers_ = false;
};

TensorGroupId GroupOf(std::string_view name) {
  if (name.starts_with("embed.") || name.starts_with("head.")) return TensorGroupId::kEmbedHead;
  if (Contains(name, ".attn.")) return TensorGroupId::kAttention;
  if (Contains(name, ".ffn.gate.tid2eid")) return TensorGroupId::kTables;
  if (Contains(name, ".ffn.gate.")) return TensorGroupId::kRouter;
  if (Contains(name, ".ffn.shared_experts.")) return TensorGroupId::kShared;
  if (Contains(name, ".ffn.experts.")) return TensorGroupId::kRouted;
  return TensorGroupId::kNorms;
}

int64_t Parameters(const std::string& name, const SafetensorsEntry& entry) {
  if (name.ends_with(".scale") || name.ends_with(".tid2eid")) return 0;
  int64_t count = entry.dtype == "I8" ? 2 : 1;
  for (int64_t dimension : entry.shape) count *= dimension;
  return count;
}

void Add(TensorGroup* group, const std::string& name, const SafetensorsEntry& entry) {
  ++group->tensors;
  group->parameters += Parameters(name, entry);
  group->bytes += entry.bytes();
  group->dtype_bytes[std::string(entry.dtype)] += entry.bytes();
}

/// One expert's tensor, or a stack of all of them.
void AddExpertBytes(const std::string& name, int64_t bytes, std::vector<int64_t>* expert_bytes) {
  const std::string_view marker = ".ffn.experts.";
  const int expert = IndexBehind(std::string_view(name).substr(name.find(marker)), marker);
  if (expert >= 0) {
    expert_bytes->at(expert) += bytes;
  } else {
    for (int64_t& each : *expert_bytes) each += bytes / static_cast<int64_t>(expert_bytes->size());
  }
}

}  // namespace

std::string_view TensorGroupName(TensorGroupId id) {
  constexpr std::string_view kNames[kTensorGroups] = {
      "embed_head",     "attention", "router", "tables", "shared_experts",
      "routed_experts", "norms_hc",  "mtp",    "unused", "unexpected"};
  return kNames[static_cast<int>(id)];
}

std::string TensorGroup::DTypes() const {
  std::vector<std::pair<int64_t, std::string>> order;
  for (const auto& [dtype, size] : dtype_bytes) order.emplace_back(-size, dtype);
  std::sort(order.begin(), order.end());
  std::string text;
  for (const auto& [size, dtype] : order) text += (text.empty() ? "" : " + ") + dtype;
  return text;
}

TensorGroup CheckpointSummary::Total() const {
  TensorGroup total;
  for (const TensorGroup& group : groups) {
    total.tensors += group.tensors;
    total.parameters += group.parameters;
    total.bytes += group.bytes;
    for (const auto& [dtype, size] : group.dtype_bytes) total.dtype_bytes[dtype] += size;
  }
  return total;
}

int64_t CheckpointSummary::DenseBytes() const {
  int64_t bytes = Total().bytes;
  for (TensorGroupId other :
       {TensorGroupId::kRouted, TensorGroupId::kMtp, TensorGroupId::kUnused, TensorGroupId::kUnexpected})
    bytes -= group(other).bytes;
  return bytes;
}

int64_t CheckpointSummary::MainParameters() const {
  int64_t parameters = Total().parameters;
  for (TensorGroupId other : {TensorGroupId::kMtp, TensorGroupId::kUnused, TensorGroupId::kUnexpected})
    parameters -= group(other).parameters;
  return parameters;
}

CheckpointSummary Summarise(const ModelConfig& config, const Checkpoint& checkpoint,
                            const std::unordered_map<std::string, bool>& asked) {
  CheckpointSummary summary;
  summary.expert_bytes.assign(config.n_routed_experts, 0);
  const std::vector<std::string> names = checkpoint.OfficialNames();
  const DraftNames draft(config, names);
  std::set<const SafetensorsFile*> files;
  for (const std::string& name : names) {
    const Checkpoint::Tensor& tensor = *checkpoint.Find(name);
    files.insert(tensor.file);
    TensorGroupId id = GroupOf(name);
    if (draft.Has(name)) {
      id = TensorGroupId::kMtp;
      summary.dspark |= IsDSpark(name);
    } else if (const auto at = asked.find(name); at == asked.end()) {
      id = TensorGroupId::kUnexpected;
      summary.unexpected.push_back(name);
    } else if (!at->second) {
      id = TensorGroupId::kUnused;
    }
    if (id == TensorGroupId::kRouted) {
      AddExpertBytes(name, tensor.entry->bytes(), &summary.expert_bytes);
      summary.stacked_experts |= Contains(name, ".experts.gate_up_proj");
    }
    if (id != TensorGroupId::kUnexpected)
      summary.names = std::max(summary.names, NameSchemeOf(tensor.entry->name));
    Add(&summary.groups[static_cast<int>(id)], name, *tensor.entry);
  }
  summary.files = static_cast<int>(files.size());
  return summary;
}

}  // namespace cachalot

#include "expert_service/expert_store.h"

#include <charconv>

#include "common/model/forward.h"

namespace cachalot {

StatusOr<ShardSpec> ShardSpec::Parse(const std::string& text) {
  ShardSpec spec;
  const char* end = text.data() + text.size();
  const auto [slash, first] = std::from_chars(text.data(), end, spec.shard);
  bool ok = first == std::errc() && slash != end && *slash == '/';
  if (ok) {
    const auto [rest, second] = std::from_chars(slash + 1, end, spec.shards);
    ok = second == std::errc() && rest == end;
  }
  if (!ok || spec.shards < 1 || spec.shard < 0 || spec.shard >= spec.shards ||
      kReductionGroups % spec.shards != 0)
    return InvalidArgument("shard \"" + text + "\": wanted i/N with i in [0, N) and N one of 1, 2, 4, 8");
  return spec;
}

StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Load(const std::string& directory,
                                                         const ShardSpec& spec) {
  ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::Load(directory));
  const int groups = kReductionGroups / spec.shards;
  auto store = std::make_unique<ExpertStore>();
  store->spec_ = spec;
  store->begin_ = config.group_begin(spec.shard * groups);
  store->end_ = config.group_begin((spec.shard + 1) * groups);
  ASSIGN_OR_RETURN(store->weights_,
                   ModelWeights::Load(directory, WeightSelection::Experts(store->begin_, store->end_)));
  store->layers_ = ExpertTable(*store->weights_);
  return store;
}

ExpertCallLimits ExpertStore::Limits(int64_t max_rows) const {
  return {layers(), config().hidden_size, begin_, end_, max_rows};
}

}  // namespace cachalot

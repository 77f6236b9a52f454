// What workers and expert services say of themselves, one after the other: the router's view of its cluster,
// and a worker's of its shards.

#include <array>

#include "common/moe/dispatch_plan.h"
#include "common/moe/shard_map.h"
#include "router/cluster_view.h"
#include "tests/fuzz/quiet_logs.h"
#include "tests/fuzz/records.h"

namespace cachalot::fuzz {
namespace {

constexpr int kExperts = 20, kGroups = 8;
constexpr size_t kMembers = 4;

// Bits of a record's kind.
constexpr uint8_t kLeaves = 0x40, kLeaving = 0x80;

v1::Compat OurCompat() {
  v1::Compat compat;
  compat.set_weights("abc");
  compat.set_protocol(kProtocolVersion);
  compat.set_state_format(1);
  compat.set_mode("exact");
  compat.set_kv_layout("layout");
  compat.set_reduction_groups(kGroups);
  compat.set_numerics("ref");
  return compat;
}

/// Members come, change and leave: whoever is let in agrees with what the cluster is.
void CheckCluster(const std::vector<Record>& records) {
  ClusterView view;
  std::array<char, kMembers> members{};
  std::array<std::optional<v1::Compat>, kMembers> admitted;
  uint64_t changes = 0;
  view.on_change = [&] { ++changes; };
  for (const Record& record : records) {
    const size_t m = record.kind % kMembers;
    if (record.kind & kLeaves) {
      view.Leave(&members[m]);
      admitted[m].reset();
      continue;
    }
    v1::Description description;
    if (!description.ParseFromArray(record.bytes.data(), static_cast<int>(record.bytes.size()))) continue;
    for (v1::Role role : {v1::ROLE_PREFILL, v1::ROLE_DECODE, v1::ROLE_EXPERT})
      CHECK(CheckRole(role, description.role()).ok() == (role == description.role()));
    const bool binds = !(record.kind & kLeaving);
    const bool known = view.compat().has_value();
    const uint64_t generation = view.generation();
    const Status status = view.Admit(&members[m], description.compat(), "peer", binds);
    CHECK(status.ok() || status.code() == StatusCode::kFailedPrecondition);
    if (binds) {
      admitted[m].reset();
      if (status.ok()) admitted[m] = description.compat();
    }
    CHECK(view.compat().has_value() || !binds);
    if (view.compat() && status.ok() && (known || binds))
      CHECK(CheckCompat(*view.compat(), description.compat(), "peer").ok());
    CHECK(view.generation() == changes && view.generation() - generation <= 1);
    // A cluster never changes under members that have work.
    for (const auto& compat : admitted)
      if (compat) CHECK(CheckCompat(*view.compat(), *compat, "a member").ok());
  }
}

/// Both sides of a hand-shake agree whether they fit.
void CheckFits(const v1::Compat& compat) {
  const Status theirs = CheckCompat(OurCompat(), compat, "peer");
  CHECK(theirs.ok() == CheckCompat(compat, OurCompat(), "we").ok());
  CHECK(theirs.ok() || theirs.code() == StatusCode::kFailedPrecondition);
  v1::Compat same = compat;
  same.set_protocol(kProtocolVersion);
  CHECK(!theirs.ok() || same.SerializeAsString() == OurCompat().SerializeAsString() ||
        same.ByteSizeLong() > OurCompat().ByteSizeLong());  // with fields of a newer version
}

void CheckMap(const ShardMap& map) {
  const GroupRanges ranges = GroupRanges::Make(kExperts, kGroups);
  CHECK(map.shards() >= 1 && map.shards() <= kGroups && kGroups % map.shards() == 0);
  int next = 0;
  for (int s = 0; s < map.shards(); ++s) {
    CHECK(map[s].shard == s && map[s].shards == map.shards());
    CHECK(map[s].expert_begin == next && map[s].expert_end >= next);
    next = map[s].expert_end;
    CHECK(map.CheckStandIn(s, map[s]).ok());
  }
  CHECK(next == kExperts && ranges.begin[kGroups] == kExperts);
}

void CheckShards(const std::vector<Record>& records) {
  std::vector<ShardInfo> infos;
  for (const Record& record : records) {
    v1::Description d;
    if (!d.ParseFromArray(record.bytes.data(), static_cast<int>(record.bytes.size()))) continue;
    CheckFits(d.compat());
    infos.push_back({"peer" + std::to_string(infos.size()), d.epoch(), static_cast<int>(d.shard()),
                     static_cast<int>(d.shards()), static_cast<int>(d.expert_begin()),
                     static_cast<int>(d.expert_end())});
  }
  const auto made = ShardMap::Make(infos, kExperts, kGroups),
             chosen = ShardMap::Choose(infos, kExperts, kGroups);
  for (const auto* map : {&made, &chosen}) {
    if (!map->ok()) {
      CHECK(map->status().code() == StatusCode::kFailedPrecondition);
      continue;
    }
    CheckMap(**map);
    for (const ShardInfo& info : infos)
      for (int s = 0; s < (*map)->shards(); ++s)
        CHECK((*map)->CheckStandIn(s, info).ok() ==
              (info.shard == s && info.shards == (*map)->shards() &&
               info.expert_begin == (**map)[s].expert_begin && info.expert_end == (**map)[s].expert_end));
  }
  CHECK(!made.ok() || chosen.ok());
}

v1::Description Shard(int shard, int shards) {
  const GroupRanges ranges = GroupRanges::Make(kExperts, kGroups);
  v1::Description d;
  d.set_role(v1::ROLE_EXPERT);
  d.set_epoch(7 + static_cast<uint64_t>(shard));
  *d.mutable_compat() = OurCompat();
  d.set_shard(static_cast<uint32_t>(shard));
  d.set_shards(static_cast<uint32_t>(shards));
  d.set_expert_begin(static_cast<uint32_t>(ranges.begin[shard * (kGroups / shards)]));
  d.set_expert_end(static_cast<uint32_t>(ranges.begin[(shard + 1) * (kGroups / shards)]));
  return d;
}

}  // namespace

std::vector<Seed> Seeds() {
  v1::Description decode;
  decode.set_role(v1::ROLE_DECODE);
  decode.set_epoch(1);
  *decode.mutable_compat() = OurCompat();
  decode.mutable_load()->set_free_kv_tokens(1000);
  v1::Description prefill = decode, other = decode;
  prefill.set_role(v1::ROLE_PREFILL);
  prefill.mutable_compat()->set_protocol(kProtocolVersion + 1);
  other.mutable_compat()->set_weights("def");
  Seed upgrade{"upgrade", ""}, shards{"shards", ""}, two_layouts{"two_layouts", ""};
  AddRecord(&upgrade.bytes, 0, decode);
  AddRecord(&upgrade.bytes, 1, prefill);
  AddRecord(&upgrade.bytes, 2, other);
  AddRecord(&upgrade.bytes, 0 | kLeaves, decode);
  AddRecord(&upgrade.bytes, 1 | kLeaving, prefill);
  AddRecord(&upgrade.bytes, 1 | kLeaves, prefill);
  AddRecord(&upgrade.bytes, 2, other);
  for (int s = 0; s < 4; ++s) AddRecord(&shards.bytes, static_cast<uint8_t>(s), Shard(s, 4));
  AddRecord(&two_layouts.bytes, 0, Shard(1, 4));
  AddRecord(&two_layouts.bytes, 1, Shard(1, 2));
  AddRecord(&two_layouts.bytes, 2, Shard(1, 2));
  AddRecord(&two_layouts.bytes, 3, Shard(0, 2));
  return {upgrade, shards, two_layouts};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cachalot;
  fuzz::QuietLogs();
  const auto records = fuzz::ReadRecords(fuzz::Text(data, size), 32);
  fuzz::CheckCluster(records);
  fuzz::CheckShards(records);
  return 0;
}

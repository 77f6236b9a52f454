#include "common/moe/shard_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace cachalot {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kExperts = 64, kGroups = 8;

std::vector<ShardInfo> Services(int shards) {
  std::vector<ShardInfo> services;
  for (int s = 0; s < shards; ++s)
    services.push_back({"host" + std::to_string(s) + ":1", 100u + s, s, shards, kExperts * s / shards,
                        kExperts * (s + 1) / shards});
  return services;
}

void ExpectRefused(std::vector<ShardInfo> services, const ::testing::Matcher<std::string>& message) {
  const auto map = ShardMap::Make(std::move(services), kExperts, kGroups);
  EXPECT_EQ(map.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(StatusMessage(map.status()), message);
}

TEST(ShardMap, TakesServicesInAnyOrder) {
  for (int shards : {1, 2, 4, 8}) {
    auto services = Services(shards);
    std::reverse(services.begin(), services.end());
    const auto map = ShardMap::Make(services, kExperts, kGroups);
    ASSERT_TRUE(map.ok()) << map.status();
    ASSERT_EQ(map->shards(), shards);
    for (int s = 0; s < shards; ++s) EXPECT_EQ((*map)[s].address, "host" + std::to_string(s) + ":1");
    EXPECT_EQ(map->Name(0), "shard 0/" + std::to_string(shards) + " at host0:1");
  }
}

TEST(ShardMap, SaysWhatIsMissingDoubledOrDifferent) {
  ExpectRefused({}, HasSubstr("no expert services"));
  auto services = Services(4);
  services.erase(services.begin() + 1, services.begin() + 3);
  ExpectRefused(services, HasSubstr("no expert service for shard 1, 2 of 4"));
  services = Services(4);
  services[3] = services[2];
  services[3].address = "other:1";
  ExpectRefused(services, AllOf(HasSubstr("two expert services for one shard"), HasSubstr("host2:1"),
                                HasSubstr("other:1")));
  services = Services(4);
  services[1] = Services(2)[1];
  ExpectRefused(services, HasSubstr("different layouts"));
  services = Services(4);
  services[2].expert_end += 1;
  ExpectRefused(services, AllOf(HasSubstr("[32, 49)"), HasSubstr("is [32, 48)")));
  ExpectRefused({{"a:1", 1, 0, 3, 0, 21}}, HasSubstr("3 shards do not divide"));
  ExpectRefused({{"a:1", 1, 0, 0, 0, 64}}, HasSubstr("0 shards"));
  ExpectRefused({{"a:1", 1, 2, 2, 0, 32}}, HasSubstr("no such shard"));
}

TEST(ShardMap, KnowsAServiceThatComesBack) {
  const auto map = ShardMap::Make(Services(4), kExperts, kGroups);
  ShardInfo again = (*map)[2];
  again.epoch = 999;
  EXPECT_TRUE(map->CheckSame(again).ok());
  again.shard = 1;
  EXPECT_THAT(StatusMessage(map->CheckSame(again)), HasSubstr("came back as another shard"));
  again.address = "stranger:1";
  EXPECT_EQ(map->CheckSame(again).code(), StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace cachalot

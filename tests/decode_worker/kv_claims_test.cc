#include "decode_worker/kv_claims.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

constexpr TimePoint kStart{std::chrono::seconds(1000)};
constexpr uint64_t kMine = 7, kOther = 8;
constexpr Duration kTick{1};

TEST(KvClaimsTest, NewRequestsOfOtherRoutersStandBack) {
  KvClaims claims;
  EXPECT_EQ(claims.Before(kOther, true, kStart), 0u);
  claims.Preempted(kMine, "a", kStart);
  claims.Preempted(kMine, "b", kStart);
  EXPECT_EQ(claims.Before(kOther, true, kStart), 2u);
  EXPECT_EQ(claims.Before(kOther, false, kStart), 0u) << "it has begun, here or elsewhere";
  EXPECT_EQ(claims.Before(kMine, true, kStart), 0u) << "that is its own router's line";
  claims.Granted(kMine, "b");
  EXPECT_EQ(claims.Before(kOther, true, kStart), 1u);
  claims.Granted(kOther, "a");  // another's request of that name
  EXPECT_EQ(claims.Before(kOther, true, kStart), 1u);
  claims.Granted(kMine, "a");
  EXPECT_EQ(claims.Before(kOther, true, kStart), 0u);
}

TEST(KvClaimsTest, AClaimEnds) {
  KvClaims claims;
  claims.Preempted(kMine, "a", kStart);
  EXPECT_EQ(claims.Before(kOther, true, kStart + KvClaims::kClaim - kTick), 1u);
  EXPECT_EQ(claims.Before(kOther, true, kStart + KvClaims::kClaim), 0u);
  claims.Preempted(kMine, "a", kStart);
  claims.Preempted(kMine, "a", kStart + std::chrono::seconds(3));
  EXPECT_EQ(claims.Before(kOther, true, kStart + KvClaims::kClaim), 1u) << "preempted again";
}

TEST(KvClaimsTest, ARouterThatIsGoneHasNone) {
  KvClaims claims;
  for (const uint64_t session : {kMine - 1, kMine, kOther}) claims.Preempted(session, "a", kStart);
  claims.Forget(kMine);
  EXPECT_EQ(claims.Before(99, true, kStart), 2u);
}

TEST(KvClaimsTest, KvIsWantedByClaimsAndForAWhileByTheRefused) {
  KvClaims claims;
  EXPECT_FALSE(claims.wanted(kStart));
  claims.Refused(kStart);
  EXPECT_TRUE(claims.wanted(kStart + KvClaims::kWanted - kTick));
  EXPECT_FALSE(claims.wanted(kStart + KvClaims::kWanted));
  claims.Preempted(kMine, "a", kStart);
  EXPECT_TRUE(claims.wanted(kStart + KvClaims::kWanted));
  EXPECT_FALSE(claims.wanted(kStart + KvClaims::kClaim));
}

}  // namespace
}  // namespace cachalot

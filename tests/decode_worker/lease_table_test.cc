#include "decode_worker/lease_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cachalot {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

SequenceState State(const std::string& id) {
  SequenceState state;
  state.request_id = id;
  state.prompt = {1, 2, 3};
  state.params.max_tokens = 4;
  return state;
}

class LeaseTableTest : public testing::Test {
 protected:
  Lease* Grant(uint64_t session, uint64_t handle) {
    auto lease = leases_.Grant(session, handle, State("r" + std::to_string(handle)), *pools_.Reserve(8));
    EXPECT_TRUE(lease.ok()) << lease.status();
    return *lease;
  }

  FakeClock clock_;
  BlockPools pools_{KvLayout({{KvLayerKind::kWindow, KvLayerKind::kCsa, KvLayerKind::kHca}, 8, 4, 16}), 8,
                    4096};
  LeaseTable leases_{clock_, 77, {.session_grace = seconds(3), .heartbeat_timeout = seconds(2)}};
};

TEST_F(LeaseTableTest, ALeaseIsFoundByItsNames) {
  const uint64_t session = leases_.OpenSession();
  Lease* lease = Grant(session, 5);
  EXPECT_NE(lease->id, 0u);
  EXPECT_EQ(lease->request_id, "r5");
  EXPECT_EQ(lease->phase, LeasePhase::kReserved);
  EXPECT_EQ(leases_.Find(lease->id), lease);
  EXPECT_EQ(leases_.FindHandle(session, 5), lease);
  EXPECT_EQ(leases_.FindHandle(session, 6), nullptr);
  EXPECT_EQ(leases_.FindHandle(session + 1, 5), nullptr);
  EXPECT_EQ(*leases_.FindValid(lease->id, 77), lease);
}

TEST_F(LeaseTableTest, OtherEpochsAndUnknownLeasesAreRefused) {
  Lease* lease = Grant(leases_.OpenSession(), 5);
  EXPECT_EQ(leases_.FindValid(lease->id, 78).status().code(), StatusCode::kAborted);
  EXPECT_EQ(leases_.FindValid(lease->id + 1, 77).status().code(), StatusCode::kAborted);
}

TEST_F(LeaseTableTest, ReleaseFreesTheKvAndTheHandle) {
  const uint64_t session = leases_.OpenSession();
  const uint64_t id = Grant(session, 5)->id;
  EXPECT_GT(pools_.used_blocks(), 0);
  EXPECT_NE(leases_.Release(id), nullptr);
  EXPECT_EQ(pools_.used_blocks(), 0);
  EXPECT_EQ(leases_.Release(id), nullptr);
  EXPECT_EQ(leases_.FindHandle(session, 5), nullptr);
  Grant(session, 5);  // the handle may come again
}

TEST_F(LeaseTableTest, AHandleNamesOneLeaseOfItsSession) {
  const uint64_t session = leases_.OpenSession();
  Grant(session, 5);
  EXPECT_EQ(leases_.Grant(session, 5, State("twice"), *pools_.Reserve(8)).status().code(),
            StatusCode::kInvalidArgument);
  Grant(leases_.OpenSession(), 5);  // another Session's handles are its own
  EXPECT_EQ(leases_.size(), 2u);
}

TEST_F(LeaseTableTest, ABrokenSessionKeepsItsLeasesForTheGrace) {
  const uint64_t session = leases_.OpenSession();
  const uint64_t id = Grant(session, 1)->id;
  Grant(session, 2);
  leases_.BreakSession(session);
  clock_.Advance(milliseconds(1500));
  leases_.BreakSession(session);  // again: the grace does not start anew
  clock_.Advance(milliseconds(1499));
  EXPECT_TRUE(leases_.Expire().leases.empty());
  EXPECT_TRUE(leases_.FindValid(id, 77).ok());
  clock_.Advance(milliseconds(1));
  {
    const auto expired = leases_.Expire();
    EXPECT_EQ(expired.leases.size(), 2u);
    EXPECT_TRUE(expired.silent.empty());
  }
  EXPECT_EQ(leases_.size(), 0u);
  EXPECT_EQ(leases_.sessions(), 0u);
  EXPECT_EQ(pools_.used_blocks(), 0);
}

TEST_F(LeaseTableTest, AnyMessageRenews) {
  const uint64_t session = leases_.OpenSession();
  Grant(session, 1);
  for (int i = 0; i < 10; ++i) {
    clock_.Advance(milliseconds(1900));
    leases_.Renew(session);
    const auto expired = leases_.Expire();
    EXPECT_TRUE(expired.silent.empty() && expired.leases.empty());
  }
}

TEST_F(LeaseTableTest, ASilentSessionIsReportedOnceAndThenItsGraceRuns) {
  const uint64_t session = leases_.OpenSession(), other = leases_.OpenSession();
  Grant(session, 1);
  clock_.Advance(seconds(1));
  leases_.Renew(other);
  clock_.Advance(seconds(1));
  EXPECT_THAT(leases_.Expire().silent, testing::ElementsAre(session));
  leases_.Renew(session);  // what comes after that is too late
  clock_.Advance(milliseconds(900));
  leases_.Renew(other);
  EXPECT_TRUE(leases_.Expire().silent.empty());
  clock_.Advance(milliseconds(1900));
  leases_.Renew(other);
  EXPECT_TRUE(leases_.Expire().leases.empty());
  clock_.Advance(milliseconds(200));
  EXPECT_EQ(leases_.Expire().leases.size(), 1u);
  EXPECT_EQ(leases_.sessions(), 1u);
}

TEST_F(LeaseTableTest, ARunningLeaseHoldsNoKv) {
  Lease* lease = Grant(leases_.OpenSession(), 1);
  SequenceKv kv = std::move(lease->kv);
  lease->phase = LeasePhase::kRunning;
  const int64_t used = pools_.used_blocks();
  EXPECT_EQ(leases_.Release(lease->id)->phase, LeasePhase::kRunning);
  EXPECT_EQ(pools_.used_blocks(), used);
}

}  // namespace
}  // namespace cachalot

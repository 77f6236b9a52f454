// KvTransfer.Push over real gRPC.

#include <gmock/gmock.h>

#include "tests/decode_worker/service_harness.h"

namespace cachalot {
namespace {

using testing::Eventually;

class KvTransferTest : public testing::ServiceTest {
 protected:
  void SetUp() override {
    ServiceTest::SetUp();
    Start();
    router_ = GreetedRouter();
    lease_ = router_->Lease(1, state_);
  }
  void TearDown() override {
    router_.reset();
    ServiceTest::TearDown();
  }
  void ExpectOracleTokens(int32_t first_token) {
    router_->tokens[1] = {first_token};
    EXPECT_TRUE(router_->ReadTokens(1, engine_.oracle().greedy_tokens.size()));
    EXPECT_EQ(router_->tokens[1], engine_.oracle().greedy_tokens);
    EXPECT_TRUE(AllFree());
  }

  const SequenceState state_ = engine_.OracleState();
  std::unique_ptr<testing::TestRouter> router_;
  v1::Lease lease_;
};

TEST_F(KvTransferTest, AStaleAttemptIsDroppedAndCounted) {
  const auto old = Prefill(state_, lease_, 1), fresh = Prefill(state_, lease_, 2);
  const auto old_push = NewPush(), fresh_push = NewPush();
  EXPECT_TRUE(old_push->Write(old.rows[0]));
  EXPECT_TRUE(Eventually([&] { return Metric("kv_received_bytes_total") == old.rows[0].size(); }));
  EXPECT_TRUE(fresh_push->Write(fresh.rows[0]));
  EXPECT_TRUE(Eventually(
      [&] { return Metric("kv_received_bytes_total") == old.rows[0].size() + fresh.rows[0].size(); }));
  EXPECT_TRUE(old_push->Write(old.rows[1]));
  EXPECT_EQ(old_push->Verdict().code(), StatusCode::kAborted);
  EXPECT_TRUE(old_push->Write(old.rows[2]));
  EXPECT_TRUE(old_push->Write(old.commit));
  EXPECT_TRUE(old_push->Finish().ok());
  EXPECT_EQ(Metric("stale_frames_total"), 3);
  for (size_t i = 1; i < fresh.rows.size(); ++i) EXPECT_TRUE(fresh_push->Write(fresh.rows[i]));
  EXPECT_TRUE(fresh_push->Write(fresh.commit));
  EXPECT_TRUE(fresh_push->Verdict().ok());
  EXPECT_TRUE(fresh_push->Finish().ok());
  ExpectOracleTokens(fresh.first_token);
}

TEST_F(KvTransferTest, OtherEpochsAndLeasesAreRefused) {
  v1::Lease wrong = lease_;
  wrong.set_epoch(lease_.epoch() + 1);
  EXPECT_EQ(Push(Prefill(state_, wrong)).code(), StatusCode::kAborted);
  wrong = lease_;
  wrong.set_id(lease_.id() + 1);
  EXPECT_EQ(Push(Prefill(state_, wrong)).code(), StatusCode::kAborted);
  const auto hand_off = Prefill(state_, lease_);
  EXPECT_TRUE(Push(hand_off).ok());
  ExpectOracleTokens(hand_off.first_token);
}

TEST_F(KvTransferTest, ASecondCommitChangesNothing) {
  const auto hand_off = Prefill(state_, lease_);
  const auto push = NewPush();
  for (const auto& frame : hand_off.rows) EXPECT_TRUE(push->Write(frame));
  EXPECT_TRUE(push->Write(hand_off.commit));
  EXPECT_TRUE(push->Verdict().ok());
  EXPECT_TRUE(push->Write(hand_off.commit));
  const Status again = push->Verdict();  // the sequence may have ended by now
  EXPECT_TRUE(again.ok() || again.code() == StatusCode::kAborted) << again;
  EXPECT_TRUE(push->Finish().ok());
  ExpectOracleTokens(hand_off.first_token);
}

TEST_F(KvTransferTest, CorruptFramesLoseTheAttemptAndTheNextRepairsIt) {
  auto corrupt = Prefill(state_, lease_, 1);
  corrupt.rows[3].back() ^= std::byte{1};
  EXPECT_EQ(Push(corrupt).code(), StatusCode::kDataLoss);
  auto missing = Prefill(state_, lease_, 2);
  missing.rows.pop_back();
  EXPECT_EQ(Push(missing).code(), StatusCode::kDataLoss);
  const auto good = Prefill(state_, lease_, 3);
  EXPECT_TRUE(Push(good).ok());
  ExpectOracleTokens(good.first_token);
}

class KvLingerTest : public KvTransferTest {
 protected:
  KvLingerTest() { options_.kv_linger = {}; }
};

/// A job may wait in the prefill worker's queue for longer than the decode worker keeps streams that nobody needs.
TEST_F(KvLingerTest, AStreamOfALivingLeaseMayWaitForItsFirstFrame) {
  const auto waiting = NewPush(lease_.id());
  const auto nobodys = NewPush(), of_another = NewPush(lease_.id() + 1);
  for (auto* push : {nobodys.get(), of_another.get()}) EXPECT_EQ(push->Verdict().code(), StatusCode::kInternal);
  const auto hand_off = Prefill(state_, lease_, 1);
  for (const auto& frame : hand_off.rows) EXPECT_TRUE(waiting->Write(frame));
  EXPECT_TRUE(waiting->Write(hand_off.commit));
  EXPECT_TRUE(waiting->Verdict().ok());
  ExpectOracleTokens(hand_off.first_token);
}

TEST_F(KvTransferTest, APrefillWorkerThatDiesLeavesTheLease) {
  const auto hand_off = Prefill(state_, lease_, 1);
  {
    const auto push = NewPush();
    for (size_t i = 0; i < hand_off.rows.size() / 2; ++i) EXPECT_TRUE(push->Write(hand_off.rows[i]));
  }  // cancelled
  const auto retry = Prefill(state_, lease_, 2);
  EXPECT_TRUE(Push(retry).ok());
  ExpectOracleTokens(retry.first_token);
}

}  // namespace
}  // namespace cachalot

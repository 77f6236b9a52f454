#include "decode_worker/kv_intake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

namespace cachalot {
namespace {

constexpr uint64_t kEpoch = 77;

/// A prefill worker's KV, a lease, and what starts.
class KvIntakeTest : public testing::Test {
 protected:
  void SetUp() override {
    config_.vocab_size = 100;
    config_.eos_token_ids = {1};
    SequenceState state;
    state.request_id = "r";
    state.prompt = {2, 3, 4, 5, 6, 7, 8, 9};
    state.emitted = {10, 11};
    state.params.max_tokens = 5;
    source_ = *pools_.Reserve(16);
    for (const RowRange& range : HandOffRows(pools_.layout(), kTokens))
      for (int64_t r = 0; r < range.count; ++r)
        *source_.Row(range.pool, range.layer, range.first + r) = 1.f + r;
    source_.SetTokens(kTokens);
    session_ = leases_.OpenSession();
    lease_ = *leases_.Grant(session_, 1, std::move(state), *pools_.Reserve(16));
    id_ = lease_->id;
  }

  std::vector<std::vector<std::byte>> RowFrames(uint32_t attempt, uint64_t epoch = kEpoch) {
    std::vector<std::vector<std::byte>> frames;
    for (const RowRange& range : HandOffRows(pools_.layout(), kTokens))
      frames.push_back(EncodeRows(source_, range, id_, epoch, attempt));
    return frames;
  }
  KvCommit GoodCommit() {
    KvCommit commit{kTokens, 42, 2, {}};
    for (const auto& frame : RowFrames(1)) commit.tally.Add(ParseKvFrame(frame)->header);
    return commit;
  }
  std::optional<Status> Push(const std::vector<std::byte>& frame) { return intake_.Receive(frame).verdict; }
  void PushRows(uint32_t attempt) {
    for (const auto& frame : RowFrames(attempt)) EXPECT_EQ(Push(frame), std::nullopt);
  }
  StatusCode Verdict(const std::vector<std::byte>& frame) {
    const auto verdict = Push(frame);
    return verdict ? verdict->code() : StatusCode::kUnknown;
  }
  StatusCode CommitVerdict(const KvCommit& commit, uint32_t attempt) {
    return Verdict(EncodeCommit(commit, id_, kEpoch, attempt));
  }

  static constexpr int64_t kTokens = 10;
  FakeClock clock_;
  ModelConfig config_;
  BlockPools pools_{KvLayout({{KvLayerKind::kWindow, KvLayerKind::kCsa}, 8, 4, 16}), 8, 4096};
  SequenceKv source_;
  LeaseTable leases_{clock_, kEpoch, {}};
  uint64_t session_ = 0, id_ = 0;
  Lease* lease_ = nullptr;
  int started_ = 0;
  int32_t first_token_ = 0;
  KvIntake intake_{leases_, config_, [this](Lease& lease, int32_t first_token) {
                     ++started_;
                     first_token_ = first_token;
                     EXPECT_EQ(lease.kv.tokens(), kTokens);
                     EXPECT_EQ(lease.state.emitted.size(), 2u);
                     lease.kv.Release();
                   }};
};

TEST_F(KvIntakeTest, ACompleteHandOffStartsOnce) {
  PushRows(1);
  EXPECT_EQ(lease_->phase, LeasePhase::kReceiving);
  EXPECT_EQ(CommitVerdict(GoodCommit(), 1), StatusCode::kOk);
  EXPECT_EQ(lease_->phase, LeasePhase::kRunning);
  EXPECT_EQ(first_token_, 42);
  EXPECT_EQ(CommitVerdict(GoodCommit(), 1), StatusCode::kOk);  // again: changes nothing
  EXPECT_EQ(started_, 1);
}

TEST_F(KvIntakeTest, AfterTheCommitNothingElseIsTaken) {
  PushRows(2);
  EXPECT_EQ(CommitVerdict(GoodCommit(), 2), StatusCode::kOk);
  for (uint32_t attempt : {1, 2, 3})
    EXPECT_EQ(Verdict(RowFrames(attempt)[0]), StatusCode::kAborted) << attempt;
  for (uint32_t attempt : {1, 3})
    EXPECT_EQ(CommitVerdict(GoodCommit(), attempt), StatusCode::kAborted) << attempt;
  EXPECT_EQ(started_, 1);
}

TEST_F(KvIntakeTest, AHigherAttemptTakesOverAndTheOlderIsStale) {
  EXPECT_EQ(Push(RowFrames(1)[0]), std::nullopt);
  PushRows(2);  // starts over: row 0 is not a repetition
  const auto stale = intake_.Receive(RowFrames(1)[1]);
  EXPECT_TRUE(stale.stale);
  EXPECT_EQ(stale.verdict->code(), StatusCode::kAborted);
  EXPECT_EQ(stale.attempt, 1u);
  EXPECT_EQ(CommitVerdict(GoodCommit(), 1), StatusCode::kAborted);
  EXPECT_EQ(CommitVerdict(GoodCommit(), 2), StatusCode::kOk);
}

TEST_F(KvIntakeTest, OtherLeasesEpochsAndAttemptZeroAreRefused) {
  EXPECT_EQ(Verdict(RowFrames(1, kEpoch + 1)[0]), StatusCode::kAborted);
  EXPECT_EQ(Verdict(EncodeCommit(GoodCommit(), id_ + 1, kEpoch, 1)), StatusCode::kAborted);
  EXPECT_EQ(Verdict(RowFrames(0)[0]), StatusCode::kInvalidArgument);
  EXPECT_EQ(Verdict(EncodeVerdict(OkStatus(), id_, kEpoch, 1)), StatusCode::kDataLoss);
  EXPECT_EQ(Verdict({}), StatusCode::kDataLoss);
  EXPECT_EQ(lease_->phase, LeasePhase::kReceiving);
  leases_.Release(id_);
  EXPECT_EQ(Verdict(RowFrames(1)[0]), StatusCode::kAborted);
}

TEST_F(KvIntakeTest, ACommitMustContinueThisSequence) {
  PushRows(1);
  KvCommit commit = GoodCommit();
  commit.tokens = kTokens - 1;
  EXPECT_EQ(CommitVerdict(commit, 1), StatusCode::kDataLoss);
  commit = GoodCommit();
  commit.first_index = 3;
  EXPECT_EQ(CommitVerdict(commit, 1), StatusCode::kDataLoss);
  for (int32_t token : {-1, 100}) {
    commit = GoodCommit();
    commit.first_token = token;
    EXPECT_EQ(CommitVerdict(commit, 1), StatusCode::kDataLoss);
  }
  commit = GoodCommit();
  commit.first_token = 1;  // an end token
  EXPECT_EQ(CommitVerdict(commit, 1), StatusCode::kInvalidArgument);
  EXPECT_EQ(started_, 0);
  EXPECT_EQ(CommitVerdict(GoodCommit(), 1), StatusCode::kOk);
}

TEST_F(KvIntakeTest, ACommitWithoutAllRowsIsRefusedAndTheNextAttemptRepairsIt) {
  auto frames = RowFrames(1);
  frames.pop_back();
  for (const auto& frame : frames) EXPECT_EQ(Push(frame), std::nullopt);
  EXPECT_EQ(CommitVerdict(GoodCommit(), 1), StatusCode::kDataLoss);
  PushRows(2);
  EXPECT_EQ(CommitVerdict(GoodCommit(), 2), StatusCode::kOk);
  EXPECT_EQ(started_, 1);
}

}  // namespace
}  // namespace cachalot

// RemoteExperts over real expert steps in this process: the same bits as LocalExperts, and every kind of
// fault.

#include "common/moe/remote_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/model/forward.h"
#include "tests/expert_service/tiny_experts.h"
#include "tests/support/oracle.h"

namespace cachalot {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::StepCluster;
using testing::TinyCall;
using testing::TinyExperts;

std::vector<const kernels::KernelTable*> BackEnds() {
  std::vector<const kernels::KernelTable*> tables = {&kernels::RefKernels()};
  if (kernels::CpuKernels()) tables.push_back(kernels::CpuKernels());
  return tables;
}

std::vector<float> Local(const TinyExperts& experts, TinyCall& call,
                         const kernels::KernelTable& kernels = kernels::RefKernels()) {
  ThreadPool threads(1);
  LocalExperts local(experts.table(), kernels, threads, TinyExperts::kLimit);
  return *call.Run(local);
}

TEST(RemoteExperts, GivesTheBitsOfLocalExpertsForEveryShardCount) {
  const TinyExperts experts;
  for (const auto* kernels : BackEnds()) {
    for (int shards : {1, 2, 4, 8}) {
      StepCluster cluster(experts.table(), TinyExperts::kHidden, TinyExperts::kLimit, shards, *kernels);
      const auto remote = cluster.NewBackend();
      for (int64_t rows : {1, 2, 5, 17, 100}) {
        TinyCall call(rows, static_cast<int>(rows % 2), rows);
        const auto want = Local(experts, call, *kernels);
        const auto got = call.Run(*remote);
        ASSERT_TRUE(got.ok()) << got.status();
        EXPECT_EQ(want, *got) << kernels->name << ", " << shards << " shards, " << rows << " rows";
      }
      EXPECT_EQ(remote->stats().connects, static_cast<uint64_t>(shards));
      EXPECT_EQ(remote->stats().stale_replies, 0u);
    }
  }
}

TEST(RemoteExperts, GivesTheLogitsOfLocalExpertsInAWholeModel) {
  const std::string directory = CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny";
  const auto oracle = *testing::OracleCase::Load(directory);
  const auto weights = *ModelWeights::Load(directory, WeightSelection::All());
  const auto& kernels = *BackEnds().back();
  ThreadPool threads(1);
  BlockPools pools(KvLayout(KvShapeOf(weights->config)), 2, 4096);
  const auto run = [&](ExpertBackend& experts, size_t chunk) {
    Model model(weights, kernels, threads);
    SequenceKv kv = *pools.Reserve(static_cast<int64_t>(oracle.input_ids.size()));
    std::vector<float> all;
    for (size_t at = 0; at < oracle.input_ids.size(); at += chunk) {
      const auto ids = std::span(oracle.input_ids).subspan(at, std::min(chunk, oracle.input_ids.size() - at));
      const Segment segment{&kv, ids, true};
      const auto logits = model.Forward({&segment, 1}, experts);
      EXPECT_TRUE(logits.ok()) << logits.status();
      if (!logits.ok()) return all;
      all.insert(all.end(), logits->data, logits->data + logits->first[1] * logits->vocab);
    }
    return all;
  };
  LocalExperts local(ExpertTable(*weights), kernels, threads, weights->config.swiglu_limit);
  const auto want = run(local, oracle.input_ids.size());
  for (int shards : {1, 2, 4, 8}) {
    StepCluster cluster(ExpertTable(*weights), weights->config.hidden_size, weights->config.swiglu_limit,
                        shards, kernels);
    const auto remote = cluster.NewBackend();
    EXPECT_EQ(want, run(*remote, oracle.input_ids.size())) << shards << " shards";
    EXPECT_EQ(want, run(*remote, 1)) << shards << " shards, a token at a time";
  }
}

class RemoteFaults : public ::testing::Test {
 protected:
  static constexpr int kShards = 4;
  RemoteFaults() : cluster_(experts_.table(), TinyExperts::kHidden, TinyExperts::kLimit, kShards) {}

  void ExpectRight(ExpertBackend& backend) {
    const auto got = call_.Run(backend);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(want_, *got);
  }
  void ExpectError(ExpertBackend& backend, StatusCode code, const ::testing::Matcher<std::string>& message) {
    const auto got = call_.Run(backend);
    EXPECT_EQ(got.status().code(), code) << got.status();
    EXPECT_THAT(StatusMessage(got.status()), message);
  }

  const TinyExperts experts_;
  StepCluster cluster_;
  TinyCall call_{12, 1, 5};
  const std::vector<float> want_ = Local(experts_, call_);
};

TEST_F(RemoteFaults, ALostCallIsADeadlineThatNamesTheShardAndTheNextCallWorks) {
  cluster_.SetFaults(2, FaultAt(FrameDirection::kOut, 0, {.lose = true}));
  const auto remote = cluster_.NewBackend({.call_timeout = std::chrono::milliseconds(120)});
  ExpectError(*remote, StatusCode::kDeadlineExceeded,
              AllOf(HasSubstr("layer 1"), HasSubstr("shard 2/4 at step2"), HasSubstr("0.12"),
                    Not(HasSubstr("step1"))));
  ExpectRight(*remote);
  EXPECT_EQ(remote->stats().connects, kShards + 1u);
}

TEST_F(RemoteFaults, ALostReplyToo) {
  cluster_.SetFaults(0, FaultAt(FrameDirection::kIn, 0, {.lose = true}));
  const auto remote = cluster_.NewBackend({.call_timeout = std::chrono::milliseconds(120)});
  ExpectError(*remote, StatusCode::kDeadlineExceeded, HasSubstr("shard 0/4 at step0"));
  ExpectRight(*remote);
}

TEST_F(RemoteFaults, ADelayedReplyIsWaitedFor) {
  cluster_.SetFaults(1, FaultAt(FrameDirection::kIn, 0, {.delay = std::chrono::milliseconds(400)}));
  const auto remote = cluster_.NewBackend();
  ExpectRight(*remote);
  EXPECT_GE(cluster_.clock.Now().time_since_epoch(), std::chrono::milliseconds(400));
}

TEST_F(RemoteFaults, AServiceThatGivesNoSignOfLifeIsGivenUpSoon) {
  const auto remote = cluster_.NewBackend();
  ExpectRight(*remote);
  cluster_.hung = {&cluster_.step(2)};
  const TimePoint before = cluster_.clock.Now();
  ExpectError(*remote, StatusCode::kUnavailable,
              AllOf(HasSubstr("shard 2/4 at step2"), HasSubstr("no sign of life")));
  EXPECT_LT(cluster_.clock.Now() - before, std::chrono::milliseconds(1100));
  EXPECT_EQ(cluster_.given_up, std::set<int>{2});
  cluster_.hung.clear();
  ExpectRight(*remote);
  EXPECT_EQ(remote->stats().connects, kShards + 1u);
}

TEST_F(RemoteFaults, ASlowServiceThatLivesHasTheWholeTimeOfACall) {
  cluster_.SetFaults(1, FaultAt(FrameDirection::kIn, 0, {.delay = std::chrono::milliseconds(4500)}));
  const auto remote = cluster_.NewBackend();
  ExpectRight(*remote);
  cluster_.paused = true;
  ExpectError(*remote, StatusCode::kDeadlineExceeded, HasSubstr("shard 0/4"));
  EXPECT_TRUE(cluster_.given_up.empty());
}

TEST_F(RemoteFaults, AServiceThatHangsAfterItsSignOfLifeIsGivenUpToo) {
  const auto remote = cluster_.NewBackend();
  cluster_.paused = true;
  ASSERT_TRUE(remote->Begin(call_.call()).ok());
  const TimePoint begun = cluster_.clock.Now();
  cluster_.at = {begun + std::chrono::seconds(2), [&] { cluster_.hung = {&cluster_.step(3)}; }};
  const Status status = remote->Wait();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(status), HasSubstr("shard 3/4 at step3"));
  const Duration waited = cluster_.clock.Now() - begun;
  EXPECT_GT(waited, std::chrono::milliseconds(2400));
  EXPECT_LT(waited, std::chrono::milliseconds(3100));
}

TEST_F(RemoteFaults, DamageInAnyByteOfEitherDirectionIsAnErrorAndNeverAWrongNumber) {
  for (FrameDirection direction : {FrameDirection::kOut, FrameDirection::kIn}) {
    for (size_t byte : {0, 5, 6, 8, 17, 21, 30, 33, 38, 41, 47, 48, 60, 300, 4321}) {
      cluster_.SetFaults(3, FaultAt(direction, 0, {.corrupt_byte = byte}));
      const auto remote = cluster_.NewBackend();
      ExpectError(*remote, StatusCode::kUnavailable,
                  AllOf(HasSubstr("shard 3/4 at step3"), HasSubstr("expert frame")));
      ExpectRight(*remote);
    }
  }
}

TEST_F(RemoteFaults, DuplicatesAreDroppedAndCounted) {
  cluster_.SetFaults(1, [](FrameDirection, int64_t) { return Fault{.duplicate = true}; });
  const auto remote = cluster_.NewBackend();
  for (int i = 0; i < 5; ++i) ExpectRight(*remote);
  EXPECT_GT(remote->stats().stale_replies, 0u);
  EXPECT_EQ(remote->stats().connects, static_cast<uint64_t>(kShards));
}

TEST_F(RemoteFaults, TheReplyToACallThatWasGivenUpIsDroppedAndCounted) {
  const auto remote = cluster_.NewBackend();
  ASSERT_TRUE(remote->Begin(call_.call()).ok());
  cluster_.RunSteps();  // all four shards answer, but nobody waits
  TinyCall other(3, 0, 9);
  const auto want = Local(experts_, other);
  EXPECT_EQ(want, *other.Run(*remote));
  EXPECT_GT(remote->stats().stale_replies, 0u);
  ExpectRight(*remote);
}

TEST_F(RemoteFaults, DeathInTheMiddleIsUnavailableAndTheNextBeginMakesANewChannel) {
  cluster_.SetFaults(2, DieAfter(FrameDirection::kIn, 1));
  const auto remote = cluster_.NewBackend();
  ExpectRight(*remote);
  ExpectError(*remote, StatusCode::kUnavailable, HasSubstr("shard 2/4 at step2"));
  ExpectRight(*remote);
}

TEST_F(RemoteFaults, AShardThatIsAwayIsNamedUntilItComesBack) {
  const auto remote = cluster_.NewBackend();
  ExpectRight(*remote);
  cluster_.Kill(1);
  for (int i = 0; i < 3; ++i)
    ExpectError(*remote, StatusCode::kUnavailable,
                AllOf(HasSubstr("shard 1/4 at step1"), HasSubstr("refused")));
  cluster_.Start(1);
  ExpectRight(*remote);
}

TEST_F(RemoteFaults, ALostShardDoesNotKeepOthersFromComingBack) {
  const auto remote = cluster_.NewBackend();
  ExpectRight(*remote);
  cluster_.Kill(1);
  cluster_.Kill(2);
  ExpectError(*remote, StatusCode::kUnavailable, HasSubstr("shard 1/4 at step1"));
  cluster_.Start(2);
  const uint64_t connects = remote->stats().connects;
  ExpectError(*remote, StatusCode::kUnavailable, HasSubstr("shard 1/4 at step1"));
  EXPECT_EQ(remote->stats().connects, connects + 1) << "shard 2 is back";
  cluster_.Start(1);
  ExpectRight(*remote);
}

TEST_F(RemoteFaults, AShardThatDiesWhileItComputesBreaksTheCallAtOnce) {
  const auto remote = cluster_.NewBackend();
  ASSERT_TRUE(remote->Begin(call_.call()).ok());
  cluster_.Kill(3);
  const TimePoint before = cluster_.clock.Now();
  const Status status = remote->Wait();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(status), HasSubstr("shard 3/4 at step3"));
  EXPECT_LT(cluster_.clock.Now() - before, std::chrono::seconds(1));
}

TEST_F(RemoteFaults, ShardsMayComeUpAfterTheBackEnd) {
  for (int s = 0; s < kShards; ++s) cluster_.Kill(s);
  const auto remote = cluster_.NewBackend();
  ExpectError(*remote, StatusCode::kUnavailable, HasSubstr("shard 0/4"));
  for (int s = 0; s < kShards; ++s) cluster_.Start(s);
  ExpectRight(*remote);
}

TEST_F(RemoteFaults, AnotherShardThanTheNeededOnesMayBeAway) {
  const auto remote = cluster_.NewBackend();
  TinyCall one(1, 0, 3);
  const auto want = Local(experts_, one);
  std::set<int> needed;
  for (const auto& a : one.plan.assignments) needed.insert(a.expert / (TinyExperts::kExperts / kShards));
  ASSERT_LT(needed.size(), static_cast<size_t>(kShards)) << "choose another seed";
  for (int s = 0; s < kShards; ++s)
    if (!needed.contains(s)) cluster_.Kill(s);
  EXPECT_EQ(want, *one.Run(*remote));
}

TEST_F(RemoteFaults, ARefusalIsOursAndNoClients) {
  const auto remote = cluster_.NewBackend();
  TinyCall wrong(2, 7, 1);  // no such layer
  const auto got = wrong.Run(*remote);
  EXPECT_EQ(got.status().code(), StatusCode::kInternal);
  EXPECT_THAT(StatusMessage(got.status()), AllOf(HasSubstr("at step"), HasSubstr("layer 7")));
  ExpectRight(*remote);
  EXPECT_EQ(remote->stats().connects, static_cast<uint64_t>(kShards)) << "the channel stays good";
}

TEST_F(RemoteFaults, UnderRandomFaultsEveryAnswerIsRightOrAnError) {
  int right = 0, failed = 0;
  const auto remote = cluster_.NewBackend({.call_timeout = std::chrono::milliseconds(200)});
  for (uint64_t i = 0; i < 300; ++i) {
    for (int s = 0; s < kShards; ++s) cluster_.SetFaults(s, RandomFaults(i * kShards + s, 0.02));
    TinyCall call(1 + static_cast<int64_t>(i % 7), static_cast<int>(i % 2), i);
    const auto want = Local(experts_, call);
    const auto got = call.Run(*remote);
    if (got.ok()) {
      ++right;
      ASSERT_EQ(want, *got) << i;
    } else {
      ++failed;
      ASSERT_TRUE(got.status().code() == StatusCode::kUnavailable ||
                  got.status().code() == StatusCode::kDeadlineExceeded)
          << got.status();
    }
  }
  EXPECT_GT(right, 100);
  EXPECT_GT(failed, 10);
}

}  // namespace
}  // namespace cachalot

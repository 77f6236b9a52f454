// cachalot-expert as a process: the ready line, signals, death, a hang, a restart.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "common/kernels/kernels.h"
#include "common/moe/connect_experts.h"
#include "common/process/child_process.h"
#include "tests/expert_service/worker.h"
#include "tests/support/own_address.h"

namespace cachalot {
namespace {

using ::testing::_;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Worker;

constexpr Duration kLong = std::chrono::seconds(30);
constexpr Duration kCallTimeout = std::chrono::seconds(2);

TimePoint Soon() { return SteadyClock().Now() + kLong; }

std::unique_ptr<ChildProcess> Spawn(int shard, int shards, const std::string& listen,
                                    std::vector<std::string> more = {}) {
  std::vector<std::string> argv = {
      CACHALOT_BINARY_DIR "/cachalot-expert", "--model=" + testing::TinyDirectory(),
      "--shard=" + std::to_string(shard) + "/" + std::to_string(shards), "--listen=" + listen, "--threads=1"};
  argv.insert(argv.end(), more.begin(), more.end());
  auto child = ChildProcess::Spawn({.argv = std::move(argv)});
  EXPECT_TRUE(child.ok()) << child.status();
  return std::move(*child);
}

class ExpertProcess : public ::testing::Test {
 protected:
  ExpertProcess() {
    for (int s = 0; s < 2; ++s) {
      children_.push_back(Spawn(s, 2, testing::OwnAddress(1 + s)));  // which a restarted one needs again
      const auto address = children_.back()->WaitReady(Soon());
      EXPECT_TRUE(address.ok()) << address.status();
      addresses_.push_back(address.value_or(""));
    }
    auto backend = ConnectExperts(addresses_, &loop_, worker_.compat(), worker_.experts(),
                                  {.calls = {.call_timeout = kCallTimeout}});
    EXPECT_TRUE(backend.ok()) << backend.status();
    backend_ = std::move(*backend);
  }

  StatusOr<std::vector<float>> Run() { return worker_.Run(*backend_, worker_.prompt(), 32); }
  void ExpectRight() {
    const auto got = Run();
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(want_, *got);
  }
  void ExpectAway(const ::testing::Matcher<std::string>& why) {
    const auto got = Run();
    EXPECT_EQ(got.status().code(), StatusCode::kUnavailable) << got.status();
    EXPECT_THAT(StatusMessage(got.status()), AllOf(HasSubstr("shard 1/2"), HasSubstr(addresses_[1]), why));
  }
  void ExpectRecovery() {
    const TimePoint begin = loop_.Now();
    StatusOr<std::vector<float>> got = Run();
    while (!got.ok() && loop_.Now() < begin + kLong) {
      EXPECT_EQ(got.status().code(), StatusCode::kUnavailable) << got.status();
      loop_.PollOnce(loop_.Now() + std::chrono::milliseconds(5));
      got = Run();
    }
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(want_, *got);
    RecordProperty("recovery_ms", std::to_string(Seconds(loop_.Now() - begin) * 1000));
  }

  Worker worker_;
  const std::vector<float> want_ = worker_.RunLocal();
  std::vector<std::unique_ptr<ChildProcess>> children_;
  std::vector<std::string> addresses_;
  rpc::Loop loop_;
  std::unique_ptr<RemoteExperts> backend_;
};

TEST_F(ExpertProcess, ServesAndEndsWithZeroOnSigterm) {
  ExpectRight();
  for (auto& child : children_) child->Signal(SIGTERM);
  // The callers are still connected, and idle.
  for (auto& child : children_) {
    StatusOr<ChildExit> exit = DeadlineExceeded("");
    const TimePoint deadline = Soon();
    while (!exit.ok() && loop_.Now() < deadline) {
      loop_.PollOnce(loop_.Now() + std::chrono::milliseconds(5));
      exit = child->Wait(loop_.Now());
    }
    ASSERT_TRUE(exit.ok()) << exit.status();
    EXPECT_EQ(exit->ToString(), ChildExit{}.ToString());
  }
  EXPECT_EQ(Run().status().code(), StatusCode::kUnavailable);
}

TEST_F(ExpertProcess, AKilledServiceIsUnavailableUntilItIsBack) {
  ExpectRight();
  children_[1]->Kill();
  ASSERT_TRUE(children_[1]->Wait(Soon()).ok());
  // A dead peer costs no wait for an answer: neither the call's, which would be DEADLINE_EXCEEDED, nor the
  // one for a sign of life.
  for (int i = 0; i < 3; ++i) ExpectAway(Not(HasSubstr("no sign of life")));
  children_[1] = Spawn(1, 2, addresses_[1]);
  ASSERT_TRUE(children_[1]->WaitReady(Soon()).ok());
  ExpectRecovery();
}

TEST_F(ExpertProcess, AHungServiceIsNoticedByItsSilenceAndIsThenAway) {
  ExpectRight();
  children_[1]->Signal(SIGSTOP);
  ExpectAway(HasSubstr("no sign of life"));
  for (int i = 0; i < 2; ++i) ExpectAway(_);
  children_[1]->Signal(SIGCONT);
  ExpectRecovery();
}

TEST(ExpertMain, WrongFlagsEndWithUsage) {
  for (const char* flag : {"--shard=0/3", "--mode=official", "--kernels=gpu", "--nonsense", "--log-level=loud"}) {
    std::vector<std::string> argv = {CACHALOT_BINARY_DIR "/cachalot-expert"};
    argv.push_back("--model=" + testing::TinyDirectory());
    argv.push_back(flag);
    auto child = *ChildProcess::Spawn({.argv = argv});
    const auto exit = child->Wait(Soon());
    ASSERT_TRUE(exit.ok()) << exit.status();
    EXPECT_EQ(exit->code, 2) << flag;
  }
}

}  // namespace
}  // namespace cachalot

// Every role dies, stops or drains under sixteen streams, while it has work of theirs: no token is lost,
// repeated or wrong, nothing leaks, no other process ends.

#include <gmock/gmock.h>

#include <csignal>
#include <cstdio>
#include <functional>
#include <thread>

#include "tests/integration/link_faults_fixture.h"
#include "tests/support/patience.h"

namespace cachalot::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// What befalls a process, under sixteen streams.
class RoleFaults : public LinkFaultsBase {
 protected:
  using Act = std::function<void()>;
  enum class When {
    kPrompts,  // prompts are computed, and none has been yet
    kMidway,   // all decode
  };
  static constexpr size_t kMidwayTokens = 200;  // of some 900

  static LinkedCluster::Member& Member(Role role) { return cluster_->member(role, 0); }

  /// `hit` the first of a role while it has work of the streams. Prompts go on behind that.
  static StreamsResult Strike(Role victim, When when, const Act& hit, const Act& then) {
    if (when == When::kMidway)
      return RunWith(cluster_->address(), *workload_, kMidwayTokens, [&] {
        hit();
        then();
      });
    LinkProxy& held = HoldPrefill(victim);
    Streams streams(cluster_->address(), *workload_);
    AwaitPrompts(victim);
    hit();
    held.Heal();
    then();
    return streams.Join();
  }

  static void Kill(Role role) {
    Member(role).process->Kill();
    EXPECT_TRUE(Member(role).process->Wait(std::chrono::steady_clock::now() + kSettled).ok());
  }
  static void Restart(Role role) {
    const Status status = cluster_->Restart(role, 0);
    EXPECT_TRUE(status.ok()) << status;
  }
  static void ExpectExactAgain() {
    const StreamsResult after = Streams(cluster_->address(), *workload_).Join();
    PrintSilence(after, "afterwards");
    ExpectExact(after);
    ExpectSettled();
  }
  static uint64_t EpochOf(Role role) {
    const auto description = ProcessCluster::Describe(Member(role).address);
    EXPECT_TRUE(description.ok()) << description.status();
    return description.ok() ? description->epoch() : 0;
  }
  /// Until something that counts as `repair` has been done.
  static void AwaitRepair(const Repairs& before, Repair repair) {
    const TimePoint end = std::chrono::steady_clock::now() + kSettled;
    while (RepairsSoFar().Of(repair) <= before.Of(repair) && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(milliseconds(20));  // between looks at other processes
  }
  /// `repair`: what must be done again before the next one takes its place.
  static void KilledAndRestarted(Role role, When when, Repair repair) {
    AwaitUsed(role);
    const uint64_t epoch = EpochOf(role);
    const Repairs before = RepairsSoFar();
    const StreamsResult result = Strike(
        role, when, [&] { Kill(role); },
        [&] {
          AwaitRepair(before, repair);
          Restart(role);
        });
    PrintSilence(result);
    ExpectExact(result);
    EXPECT_NE(EpochOf(role), epoch);
    ExpectSettled();
    EXPECT_GT(RepairsSince(before).Of(repair), 0) << "nobody noticed: it had nothing to do";
    ExpectExactAgain();
  }
  /// `noticed`: what must be done again since the stop is longer than silence may be.
  static void StoppedFor(Role role, When when, Duration time, Repair noticed = Repair::kNone) {
    AwaitUsed(role);
    const Repairs before = RepairsSoFar();
    const StreamsResult result = Strike(
        role, when, [&] { Member(role).process->Signal(SIGSTOP); },
        [&] {
          std::this_thread::sleep_for(time);  // the fault's own length
          Member(role).process->Signal(SIGCONT);
        });
    PrintSilence(result);
    ExpectExact(result);
    ExpectSettled();
    const Repairs since = RepairsSince(before);
    if (noticed == Repair::kNone) return;
    EXPECT_GT(since.Of(noticed), 0) << "nobody noticed: the streams have just waited";
  }
  /// SIGTERM; with prompts that it has to wait for, until it says that it drains.
  static void BeginDrain(Role role, When when) {
    Member(role).process->Signal(SIGTERM);
    if (when == When::kMidway) return;
    const TimePoint end = std::chrono::steady_clock::now() + kSettled;
    std::string why;
    while (why.empty() && std::chrono::steady_clock::now() < end) why = LoadOf(role, 0).not_serving();
    EXPECT_THAT(why, ::testing::HasSubstr("draining"));
  }
  static void Drained(Role role, When when) {
    AwaitUsed(role);
    const Repairs before = RepairsSoFar();
    const StreamsResult result = Strike(
        role, when, [&] { BeginDrain(role, when); }, [&] { ExpectDrained(Member(role)); });
    PrintSilence(result);
    ExpectExact(result);
    ExpectNothingHeld();
    const Repairs since = RepairsSince(before);
    // Midway a client that was slow to begin may meet a worker that takes nothing new.
    if (when == When::kPrompts) {
      EXPECT_EQ(since.leases + since.prefills + since.failovers, 0) << "it did not end what it had";
    }
    Restart(role);
    ExpectExactAgain();
  }
};

TEST_F(RoleFaults, KilledPrefillWorker) {
  KilledAndRestarted(Role::kPrefill, When::kPrompts, Repair::kPrefill);
}
TEST_F(RoleFaults, KilledDecodeWorker) {
  KilledAndRestarted(Role::kDecode, When::kMidway, Repair::kFailover);
}
TEST_F(RoleFaults, KilledExpertService) {
  KilledAndRestarted(Role::kExpert, When::kMidway, Repair::kExpertsOfDecode);
}
TEST_F(RoleFaults, KilledExpertServiceDuringPrefill) {
  KilledAndRestarted(Role::kExpert, When::kPrompts, Repair::kExpertsOfPrefill);
}

TEST_F(RoleFaults, KilledRouterBreaksItsStreamsAndTheNextOneResumesThem) {
  const StreamsResult result = Strike(
      Role::kRouter, When::kMidway, [] { Kill(Role::kRouter); }, [] { Restart(Role::kRouter); });
  PrintSilence(result);
  EXPECT_GT(ExpectResumable(result), 0u);
  ExpectSettled();
  ExpectExactAgain();
}

TEST_F(RoleFaults, StoppedPrefillWorker) {
  StoppedFor(Role::kPrefill, When::kPrompts, seconds(5), Repair::kPrefill);
}
TEST_F(RoleFaults, StoppedDecodeWorker) {
  StoppedFor(Role::kDecode, When::kMidway, seconds(5), Repair::kFailover);
}
TEST_F(RoleFaults, BrieflyStoppedDecodeWorker) { StoppedFor(Role::kDecode, When::kMidway, seconds(1)); }
TEST_F(RoleFaults, StoppedExpertService) {
  StoppedFor(Role::kExpert, When::kMidway, seconds(3), Repair::kExpertsOfDecode);
}
TEST_F(RoleFaults, BrieflyStoppedRouter) { StoppedFor(Role::kRouter, When::kMidway, seconds(1)); }
TEST_F(RoleFaults, StoppedRouterIsGivenUpByItsWorkersAndGoesOn) {
  // Longer than a window and what the clients have: none of them ends at its worker while the router stands
  // still, and each holds a lease there.
  constexpr size_t kFew = 2;
  const auto workload = MakeWorkload(600, kFew);
  ASSERT_TRUE(workload.ok()) << workload.status();
  const auto expired = [] { return OfBoth(Role::kDecode, "cachalot_decode_expired_leases_total"); };
  const double before = expired();
  const StreamsResult result = RunWith(cluster_->address(), *workload, kMidwayTokens, [&] {
    Member(Role::kRouter).process->Signal(SIGSTOP);
    const TimePoint end = std::chrono::steady_clock::now() + kPatience;
    while (expired() < before + kFew && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(milliseconds(20));  // between looks at other processes
    EXPECT_EQ(expired(), before + kFew) << "a worker goes on waiting for a router that hangs";
    Member(Role::kRouter).process->Signal(SIGCONT);
  });
  PrintSilence(result);
  ExpectExact(result, *workload);
  ExpectSettled();
}

TEST_F(RoleFaults, DrainedPrefillWorker) { Drained(Role::kPrefill, When::kPrompts); }
TEST_F(RoleFaults, DrainedDecodeWorker) { Drained(Role::kDecode, When::kMidway); }
TEST_F(RoleFaults, DrainedDecodeWorkerDuringPrefill) { Drained(Role::kDecode, When::kPrompts); }

/// The next one takes its place behind the same address while the streams wait.
TEST_F(RoleFaults, DrainedExpertService) {
  for (const When when : {When::kPrompts, When::kMidway}) {
    const uint64_t epoch = EpochOf(Role::kExpert);
    const StreamsResult result = Strike(
        Role::kExpert, when, [] { Member(Role::kExpert).process->Signal(SIGTERM); },
        [] {
          ExpectDrained(Member(Role::kExpert));
          Restart(Role::kExpert);
        });
    PrintSilence(result, when == When::kPrompts ? "prompts" : "midway");
    ExpectExact(result);
    EXPECT_NE(EpochOf(Role::kExpert), epoch);
    ExpectSettled();
  }
  ExpectExactAgain();
}

/// Two routers, known to every client; all begin at the first.
class TwoRouters : public LinkFaultsBase {
 protected:
  static void SetUpTestSuite() {
    auto workload = MakeWorkload(kMaxTokens);
    ASSERT_TRUE(workload.ok()) << workload.status();
    workload_ = new Workload(std::move(*workload));
  }
  void SetUp() override {}
  void TearDown() override { delete std::exchange(cluster_, nullptr); }

  static double Requests(int router) {
    return Metric(LinkedCluster::MetricsOf(Role::kRouter, router), "cachalot_router_requests_total");
  }
  /// SIGTERM to the first one midway. How many streams went on at the second.
  static double DrainTheFirst(const std::vector<std::string>& flags) {
    auto started = LinkedCluster::Start({.model = DemoDirectory(), .router_flags = flags, .routers = 2});
    EXPECT_TRUE(started.ok()) << started.status();
    if (!started.ok() || !workload_) return -1;
    cluster_ = started->release();
    LinkedCluster::Member& first = cluster_->member(Role::kRouter, 0);
    const std::string routers = first.address + "," + cluster_->member(Role::kRouter, 1).address;
    const StreamsResult result = RunWith(routers, *workload_, 200, [&] {
      EXPECT_EQ(Requests(0), kStreams);
      Drain(first);
    });
    PrintSilence(result);
    ExpectExact(result);
    const double moved = Requests(1);
    ExpectExact(Streams(routers, *workload_).Join());
    EXPECT_EQ(Requests(1), moved + kStreams);
    const Status held = cluster_->WaitNothingHeld(kSettled);
    EXPECT_TRUE(held.ok()) << held;
    return moved;
  }
};

TEST_F(TwoRouters, ADrainedRouterEndsItsStreams) {
  EXPECT_EQ(DrainTheFirst({}), 0) << "it had the time to end them itself";
}

TEST_F(TwoRouters, ADrainedRouterWithoutTimeLeavesItsStreamsToTheOther) {
  EXPECT_GT(DrainTheFirst({"--drain-ms", "1"}), 0) << "nothing had to move: the test shows nothing";
}

}  // namespace
}  // namespace cachalot::testing

// Every link of a request's life breaks at the numbered steps of docs/architecture.md, and every role dies, stops or
// drains, under sixteen streams: no token is lost, repeated or wrong, nothing leaks, no process ends.

#include <gmock/gmock.h>

#include <csignal>
#include <cstdio>
#include <thread>

#include "tests/integration/link_faults_cluster.h"
#include "tests/support/patience.h"

namespace cachalot::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = LinkFault::Kind;
using Role = LinkedCluster::Role;

constexpr int kMaxTokens = 64;
constexpr Duration kSettled = seconds(15);
constexpr int kUnavailable = 14;

/// Who must do something again when requests on their way are hit.
enum class Repair { kNone, kLease, kPrefill, kFailover, kExpertsOfPrefill, kExpertsOfDecode };

/// A place on a request's way, by the number of its step in docs/architecture.md.
struct Step {
  const char* name;
  Link link;
  Way way;
  const char* only;     // mark of the connections
  size_t after_tokens;  // of all streams: when the fault is armed
  int64_t after_bytes;  // since then: when it strikes
  bool summed;          // frames with checksums: any byte may be flipped
  // What must be done again behind a cut: it hits requests on their way. The client's stream is its own to
  // resume.
  Repair repair = Repair::kNone;
  // So many bytes must have gone to the server before the fault is armed: an answer to a Describe may come at
  // any time, and does not mean that requests are on their way.
  int64_t after_sent = 0;
};

constexpr Step kSteps[] = {
    {"Step2_Admission", Link::kClient, Way::kToServer, "", 0, 700, false},
    {"Step4_Open", Link::kDecode0, Way::kToServer, kSessionMark, 0, 400, false, Repair::kLease},
    {"Step4_Granted", Link::kDecode0, Way::kToClient, kSessionMark, 0, 150, false, Repair::kLease, 400},
    {"Step5_PrefillCall", Link::kPrefill0, Way::kToServer, "", 0, 900, false, Repair::kPrefill},
    {"Step5_FirstToken", Link::kPrefill0, Way::kToClient, "", 0, 100, false, Repair::kPrefill, 900},
    {"Step5_KvPush", Link::kDecode0, Way::kToServer, kPushMark, 0, 60'000, true, Repair::kPrefill},
    {"Step6_Verdict", Link::kDecode0, Way::kToClient, kPushMark, 0, 100, true, Repair::kPrefill},
    {"Step6_StepBatch", Link::kDecode0, Way::kToClient, kSessionMark, 150, 300, false, Repair::kFailover},
    {"Step7_ExpertsOfPrefill", Link::kPrefillExpert0, Way::kToServer, "", 0, 50'000, true,
     Repair::kExpertsOfPrefill},
    {"Step7_ExpertsOfDecode", Link::kDecodeExpert1, Way::kToClient, "", 150, 50'000, true,
     Repair::kExpertsOfDecode},
    {"Step8_ClientStream", Link::kClient, Way::kToClient, "", 150, 300, false},
};

enum class What { kDelay, kHold, kHoldLong, kCut, kRefuse, kFlip, kMovedAway };

struct Case {
  Step step;
  What what;
  int64_t more_bytes = 0;  // behind the step's first
};

const char* NameOf(What what) {
  switch (what) {
    case What::kDelay:
      return "Delay";
    case What::kHold:
      return "Hold";
    case What::kHoldLong:
      return "HoldLong";
    case What::kCut:
      return "Cut";
    case What::kRefuse:
      return "Refuse";
    case What::kFlip:
      return "Flip";
    case What::kMovedAway:
      return "OldConnectionsHang";
  }
  return "";
}

std::string NameOf(const Case& c) {
  std::string name = std::string(c.step.name) + "_" + NameOf(c.what);
  if (c.more_bytes) name += "_" + std::to_string(c.more_bytes);
  return name;
}

void PrintTo(const Case& c, std::ostream* out) { *out << NameOf(c); }

LinkFault FaultOf(const Case& c) {
  LinkFault fault{.way = c.step.way, .after_bytes = c.step.after_bytes + c.more_bytes, .only = c.step.only};
  switch (c.what) {
    case What::kDelay:
      fault.kind = Kind::kDelay;
      // Experts are asked six times a token: the links of the rest may be slower.
      fault.delay = c.step.link >= Link::kPrefillExpert0 ? milliseconds(3) : milliseconds(20);
      break;
    case What::kHold:
    case What::kHoldLong:
      fault.kind = Kind::kHold;
      break;
    case What::kMovedAway:
      fault.kind = Kind::kHold;
      fault.spare_new = true;
      break;
    case What::kCut:
      fault.kind = Kind::kCut;
      break;
    case What::kRefuse:
      fault.kind = Kind::kRefuse;
      fault.only.clear();
      break;
    case What::kFlip:
      fault.kind = c.step.summed ? Kind::kFlip : Kind::kFlipChunk;
      break;
  }
  return fault;
}

/// How long it lasts from its strike on; zero: until all streams have ended.
Duration LastsFor(const Case& c) {
  const bool experts = c.step.link >= Link::kPrefillExpert0;  // there is no other pair of shards
  const bool alone = experts || c.step.link == Link::kClient;
  switch (c.what) {
    case What::kHold:
      return seconds(1);
    case What::kHoldLong:
      return alone ? seconds(4) : Duration::zero();
    case What::kRefuse:
      return alone ? seconds(2) : Duration::zero();
    default:
      return Duration::zero();
  }
}

class LinkFaultsBase : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto cluster = LinkedCluster::Start({.model = DemoDirectory()});
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = cluster->release();
    auto workload = MakeWorkload(kMaxTokens);
    ASSERT_TRUE(workload.ok()) << workload.status();
    workload_ = new Workload(std::move(*workload));
  }
  static void TearDownTestSuite() {
    delete std::exchange(cluster_, nullptr);
    delete std::exchange(workload_, nullptr);
  }
  void SetUp() override { ASSERT_TRUE(cluster_ && workload_); }

  static void ExpectExact(const StreamsResult& result, const Workload& workload = *workload_) {
    for (size_t i = 0; i < workload.answers.size(); ++i) {
      const Output& output = result.outputs[i];
      EXPECT_TRUE(output.status.ok())
          << "stream " << i << ": " << output.status.code << " " << output.status.message;
      EXPECT_EQ(output.ids, workload.answers[i]) << "stream " << i;
    }
  }

  /// The client's own link broke: what has come is right, and another call goes on behind it. How many did.
  static size_t ExpectResumable(const StreamsResult& result) {
    client::Client client(cluster_->member(Role::kRouter, 0).address);
    size_t broken = 0;
    for (size_t i = 0; i < kStreams; ++i) {
      const Output& output = result.outputs[i];
      std::vector<int32_t> ids = output.ids;
      const std::vector<int32_t>& answer = workload_->answers[i];
      if (!output.status.ok()) {
        ++broken;
        EXPECT_EQ(output.status.code, kUnavailable)
            << "stream " << i << ": " << output.status.code << " " << output.status.message;
        const bool right = ids.size() <= answer.size() && std::equal(ids.begin(), ids.end(), answer.begin());
        EXPECT_TRUE(right) << "stream " << i << " got a wrong token";
        if (!right) continue;
        client::GenerateRequest rest = workload_->requests[i];
        rest.resume_tokens = ids;
        const Output more = Ask(client, rest);
        EXPECT_TRUE(more.status.ok()) << "stream " << i << " resumed: " << more.status.message;
        ids.insert(ids.end(), more.ids.begin(), more.ids.end());
      }
      EXPECT_EQ(ids, answer) << "stream " << i;
    }
    std::printf("  %zu of %zu streams broke and were resumed\n", broken, kStreams);
    return broken;
  }

  /// What the router has done again so far, and how many calls of experts have failed.
  struct Repairs {
    double leases = 0, prefills = 0, failovers = 0, experts_of_prefill = 0, experts_of_decode = 0;

    double Of(Repair repair) const {
      switch (repair) {
        case Repair::kLease:  // a request whose Session is cut may have its lease already
          return leases + failovers;
        case Repair::kPrefill:
          return prefills + failovers;
        case Repair::kFailover:
          return failovers;
        case Repair::kExpertsOfPrefill:
          return experts_of_prefill;
        case Repair::kExpertsOfDecode:
          return experts_of_decode;
        case Repair::kNone:
          break;
      }
      return 0;
    }
  };
  /// Over both workers of a role.
  static double OfBoth(Role role, const std::string& name) {
    double sum = 0;
    for (int i : {0, 1}) {
      const double one = Metric(LinkedCluster::MetricsOf(role, i), name);
      EXPECT_GE(one, 0) << "no metric " << name;
      sum += one;
    }
    return sum;
  }
  static Repairs RepairsSoFar() {
    const std::string router = LinkedCluster::MetricsOf(Role::kRouter, 0);
    const Repairs repairs{Metric(router, "cachalot_router_lease_retries_total"),
                          Metric(router, "cachalot_router_prefill_retries_total"),
                          Metric(router, "cachalot_router_decode_failovers_total"),
                          OfBoth(Role::kPrefill, "cachalot_prefill_expert_failures_total"),
                          OfBoth(Role::kDecode, "cachalot_decode_expert_failures_total")};
    EXPECT_GE(repairs.failovers, 0) << "the router has no metrics";
    return repairs;
  }
  static Repairs RepairsSince(const Repairs& before) {
    const Repairs now = RepairsSoFar();
    const Repairs since{now.leases - before.leases, now.prefills - before.prefills,
                        now.failovers - before.failovers, now.experts_of_prefill - before.experts_of_prefill,
                        now.experts_of_decode - before.experts_of_decode};
    std::printf(
        "  again: %g leases, %g prefills; %g requests went on at another pair; failed calls of experts: "
        "%g of prefill, %g of decode\n",
        since.leases, since.prefills, since.failovers, since.experts_of_prefill, since.experts_of_decode);
    return since;
  }

  static void ExpectSettled() {
    cluster_->HealAll();
    const Status status = cluster_->WaitNothingHeld(kSettled);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(cluster_->Ended(), "") << "a process ended";
  }

  static void Drain(LinkedCluster::Member& member) {
    const TimePoint begin = std::chrono::steady_clock::now();
    member.process->Signal(SIGTERM);
    const auto exit = member.process->Wait(begin + kSettled);
    ASSERT_TRUE(exit.ok()) << exit.status();
    EXPECT_EQ(exit->code, 0) << exit->ToString();
    std::printf("  drained in %.2f s\n", Seconds(std::chrono::steady_clock::now() - begin));
  }

  static void Report(const std::string& name, const StreamsResult& result) {
    std::printf("  %-40s all streams %.2f s, longest silence of one %.2f s\n", name.c_str(),
                Seconds(result.total), Seconds(result.longest_silence));
  }

  static inline LinkedCluster* cluster_ = nullptr;
  static inline Workload* workload_ = nullptr;
};

class LinkFaults : public LinkFaultsBase, public ::testing::WithParamInterface<Case> {};

TEST_P(LinkFaults, NoTokenIsLostRepeatedOrWrong) {
  const Case& c = GetParam();
  LinkProxy& link = cluster_->link(c.step.link);
  const LinkFault fault = FaultOf(c);
  const Repairs before = RepairsSoFar();
  const auto follow = [&] {
    EXPECT_TRUE(link.WaitStruck(kStrikes)) << "it never struck: the test shows nothing";
    const Duration lasts = LastsFor(c);
    if (lasts == Duration::zero()) return;
    std::this_thread::sleep_for(lasts);  // the fault's own length
    link.Heal();
  };
  StreamsResult result;
  if (c.step.after_tokens > 0) {
    result = RunWith(cluster_->address(), *workload_, c.step.after_tokens, [&] {
      link.Set(fault);
      follow();
    });
  } else {
    const int64_t sent = link.counters().to_server;
    if (c.step.after_sent == 0) link.Set(fault);
    Streams streams(cluster_->address(), *workload_);
    if (c.step.after_sent > 0) {
      const TimePoint end = std::chrono::steady_clock::now() + kStrikes;
      while (link.counters().to_server < sent + c.step.after_sent && std::chrono::steady_clock::now() < end)
        std::this_thread::yield();
      link.Set(fault);
    }
    follow();
    result = streams.Join();
  }
  Report(NameOf(c), result);
  const bool breaks_all = c.what == What::kCut || c.what == What::kMovedAway;  // a client's old connections
  const bool breaks_client = breaks_all || c.what == What::kFlip || c.what == What::kRefuse;
  if (c.step.link == Link::kClient && breaks_client) {
    cluster_->HealAll();
    const size_t broken = ExpectResumable(result);
    EXPECT_TRUE(broken > 0 || !breaks_all) << "nothing was lost: the test shows nothing";
  } else {
    ExpectExact(result);
  }
  ExpectSettled();
  const Repairs since = RepairsSince(before);
  if (c.what != What::kCut || c.step.repair == Repair::kNone) return;
  EXPECT_GT(since.Of(c.step.repair), 0) << "nothing had to be done again: the test shows nothing";
}

std::vector<Case> Matrix(std::initializer_list<What> what) {
  std::vector<Case> cases;
  for (const Step& step : kSteps)
    for (What w : what) cases.push_back({step, w});
  return cases;
}

const auto kCaseName = [](const auto& info) { return NameOf(info.param); };

INSTANTIATE_TEST_SUITE_P(Steps, LinkFaults,
                         ::testing::ValuesIn(Matrix({What::kDelay, What::kCut, What::kHold, What::kFlip})),
                         kCaseName);
INSTANTIATE_TEST_SUITE_P(DISABLED_Whole, LinkFaults,
                         ::testing::ValuesIn(Matrix({What::kRefuse, What::kHoldLong, What::kMovedAway})),
                         kCaseName);

/// Step 9: the clients leave while their Closes cannot get through.
class ReleaseFaults : public LinkFaultsBase {
 protected:
  static void LeaveWhile(Kind kind, Duration lasts) {
    LinkProxy& link = cluster_->link(Link::kDecode0);
    client::GenerateRequest endless = workload_->requests[0];
    endless.max_tokens = 2000;
    Workload leaving;
    leaving.requests.assign(kStreams, endless);
    Streams streams(cluster_->address(), leaving);
    if (streams.WaitTokens(100))
      link.Set({.kind = kind, .way = Way::kToServer, .after_bytes = 1, .only = kSessionMark});
    streams.Leave();
    EXPECT_TRUE(link.WaitStruck(kStrikes));
    if (lasts > Duration::zero()) {
      std::this_thread::sleep_for(lasts);
      link.Heal();
    }
    const StreamsResult result = streams.Join();
    for (const Output& output : result.outputs) EXPECT_EQ(output.status.code, 1) << output.status.message;
    // Not yet healed, for all the worker knows: its own clock frees what nobody renews.
    const TimePoint begin = std::chrono::steady_clock::now();
    const Status status = cluster_->WaitNothingHeld(kSettled);
    EXPECT_TRUE(status.ok()) << status;
    std::printf("  freed %.2f s after the last stream left\n",
                Seconds(std::chrono::steady_clock::now() - begin));
    ExpectSettled();
    ExpectExact(Streams(cluster_->address(), *workload_).Join());
    ExpectSettled();
  }
};

TEST_F(ReleaseFaults, Step9_ClosesThatAreHeldBack) { LeaveWhile(Kind::kHold, Duration::zero()); }
TEST_F(ReleaseFaults, Step9_ClosesThatComeLate) { LeaveWhile(Kind::kHold, seconds(1)); }
TEST_F(ReleaseFaults, Step9_ASessionThatIsCut) { LeaveWhile(Kind::kCut, Duration::zero()); }

/// What befalls a process, under sixteen streams.
class RoleFaults : public LinkFaultsBase {
 protected:
  static constexpr size_t kMidway = 200;  // tokens, of some 900

  static LinkedCluster::Member& Member(Role role, int i = 0) { return cluster_->member(role, i); }

  /// `strike` at the start, when prompts are computed, or midway, when all decode.
  static StreamsResult StrikeAfter(size_t tokens, const std::function<void()>& strike) {
    return RunWith(cluster_->address(), *workload_, tokens, strike);
  }
  static void Kill(Role role, int i = 0) {
    Member(role, i).process->Kill();
    EXPECT_TRUE(Member(role, i).process->Wait(std::chrono::steady_clock::now() + kSettled).ok());
  }
  static void KillAndRestart(Role role, int i = 0) {
    Kill(role, i);
    const Status status = cluster_->Restart(role, i);
    EXPECT_TRUE(status.ok()) << status;
  }
  static void ExpectExactAgain(const std::string& what) {
    const StreamsResult after = Streams(cluster_->address(), *workload_).Join();
    Report(what + ", afterwards", after);
    ExpectExact(after);
    ExpectSettled();
  }
  static uint64_t EpochOf(Role role, int i = 0) {
    const auto description = ProcessCluster::Describe(Member(role, i).address);
    EXPECT_TRUE(description.ok()) << description.status();
    return description.ok() ? description->epoch() : 0;
  }
  static void KilledAndRestarted(Role role, size_t tokens, const char* what) {
    const uint64_t epoch = EpochOf(role);
    const StreamsResult result = StrikeAfter(tokens, [&] { KillAndRestart(role); });
    Report(what, result);
    ExpectExact(result);
    EXPECT_NE(EpochOf(role), epoch);
    ExpectSettled();
    ExpectExactAgain(what);
  }
  /// `noticed`: what must be done again since the stop is longer than silence may be.
  static void StoppedFor(Role role, size_t tokens, Duration time, const char* what,
                         Repair noticed = Repair::kNone) {
    const Repairs before = RepairsSoFar();
    const StreamsResult result = StrikeAfter(tokens, [&] {
      Member(role).process->Signal(SIGSTOP);
      std::this_thread::sleep_for(time);  // the fault's own length
      Member(role).process->Signal(SIGCONT);
    });
    Report(what, result);
    ExpectExact(result);
    ExpectSettled();
    const Repairs since = RepairsSince(before);
    if (noticed == Repair::kNone) return;
    EXPECT_GT(since.Of(noticed), 0) << "nobody noticed: the streams have just waited";
  }
  static void Drained(Role role, size_t tokens, const char* what) {
    const StreamsResult result = StrikeAfter(tokens, [&] { Drain(Member(role)); });
    Report(what, result);
    ExpectExact(result);
    const Status held = cluster_->WaitNothingHeld(kSettled);
    EXPECT_TRUE(held.ok()) << held;
    const Status restarted = cluster_->Restart(role, 0);
    ASSERT_TRUE(restarted.ok()) << restarted;
    ExpectExactAgain(what);
  }
};

TEST_F(RoleFaults, KilledPrefillWorker) { KilledAndRestarted(Role::kPrefill, 0, "prefill worker killed"); }
TEST_F(RoleFaults, KilledDecodeWorker) { KilledAndRestarted(Role::kDecode, kMidway, "decode worker killed"); }
TEST_F(RoleFaults, KilledExpertService) {
  KilledAndRestarted(Role::kExpert, kMidway, "expert service killed");
}
TEST_F(RoleFaults, KilledExpertServiceDuringPrefill) {
  KilledAndRestarted(Role::kExpert, 0, "expert service killed during prefill");
}

TEST_F(RoleFaults, KilledRouterBreaksItsStreamsAndTheNextOneResumesThem) {
  const StreamsResult result = StrikeAfter(kMidway, [] { KillAndRestart(Role::kRouter); });
  Report("router killed", result);
  EXPECT_GT(ExpectResumable(result), 0u);
  ExpectSettled();
  ExpectExactAgain("router killed");
}

TEST_F(RoleFaults, StoppedPrefillWorker) {
  StoppedFor(Role::kPrefill, 0, seconds(5), "prefill worker stopped 5 s", Repair::kPrefill);
}
TEST_F(RoleFaults, StoppedDecodeWorker) {
  StoppedFor(Role::kDecode, kMidway, seconds(5), "decode worker stopped 5 s", Repair::kFailover);
}
TEST_F(RoleFaults, BrieflyStoppedDecodeWorker) {
  StoppedFor(Role::kDecode, kMidway, seconds(1), "decode worker stopped 1 s");
}
TEST_F(RoleFaults, StoppedExpertService) {
  StoppedFor(Role::kExpert, kMidway, seconds(3), "expert service stopped 3 s", Repair::kExpertsOfDecode);
}
TEST_F(RoleFaults, BrieflyStoppedRouter) {
  StoppedFor(Role::kRouter, kMidway, seconds(1), "router stopped 1 s");
}
TEST_F(RoleFaults, StoppedRouterIsGivenUpByItsWorkersAndGoesOn) {
  // Longer than a window and what the clients have: none of them ends at its worker while the router stands
  // still, and each holds a lease there.
  constexpr size_t kFew = 2;
  const auto workload = MakeWorkload(600, kFew);
  ASSERT_TRUE(workload.ok()) << workload.status();
  const auto expired = [] { return OfBoth(Role::kDecode, "cachalot_decode_expired_leases_total"); };
  const double before = expired();
  const StreamsResult result = RunWith(cluster_->address(), *workload, kMidway, [&] {
    Member(Role::kRouter).process->Signal(SIGSTOP);
    const TimePoint end = std::chrono::steady_clock::now() + kPatience;
    while (expired() < before + kFew && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(milliseconds(20));  // between looks at other processes
    EXPECT_EQ(expired(), before + kFew) << "a worker goes on waiting for a router that hangs";
    Member(Role::kRouter).process->Signal(SIGCONT);
  });
  Report("router stopped until its workers gave it up", result);
  ExpectExact(result, *workload);
  ExpectSettled();
}

TEST_F(RoleFaults, DrainedPrefillWorker) { Drained(Role::kPrefill, 0, "prefill worker drained"); }
TEST_F(RoleFaults, DrainedDecodeWorker) { Drained(Role::kDecode, kMidway, "decode worker drained"); }
TEST_F(RoleFaults, DrainedDecodeWorkerDuringPrefill) {
  Drained(Role::kDecode, 0, "decode worker drained at the start");
}

/// The next one takes its place behind the same address while the streams wait.
TEST_F(RoleFaults, DrainedExpertService) {
  for (size_t tokens : {size_t{0}, kMidway}) {
    const uint64_t epoch = EpochOf(Role::kExpert);
    const StreamsResult result = StrikeAfter(tokens, [&] {
      Drain(Member(Role::kExpert));
      const Status status = cluster_->Restart(Role::kExpert, 0);
      EXPECT_TRUE(status.ok()) << status;
    });
    Report("expert service drained", result);
    ExpectExact(result);
    EXPECT_NE(EpochOf(Role::kExpert), epoch);
    ExpectSettled();
  }
  ExpectExactAgain("expert service drained");
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
    Report("router drained", result);
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

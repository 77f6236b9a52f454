// Every link of a request's life breaks at the numbered steps of docs/architecture.md, and clients leave,
// under sixteen streams: no token is lost, repeated or wrong, nothing leaks, no process ends.

#include <gmock/gmock.h>

#include <cstdio>
#include <thread>

#include "tests/integration/link_faults_fixture.h"

namespace cachalot::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = LinkFault::Kind;

enum class What { kDelay, kHold, kHoldLong, kCut, kRefuse, kFlip, kMovedAway };

/// What a link carries.
enum class Bytes {
  kPlain,   // no checksum: only a frame of HTTP/2 may be spoilt, which breaks the connection
  kSummed,  // any byte may be flipped
  kRows,    // and nearly all are rows: one that is flipped among them must be noticed
};

/// A place on a request's way, by the number of its step in docs/architecture.md.
struct Step {
  const char* name;
  Link link;
  Way way;
  const char* only;     // mark of the connections
  size_t after_tokens;  // of all streams: when the fault is armed
  int64_t after_bytes;  // since then: when it strikes
  Bytes bytes;          // what a flip may hit
  // What must be done again behind a cut: it hits requests on their way. The client's stream is its own to
  // resume.
  Repair repair = Repair::kNone;
  // The CI suite's; the others are in the slow one. Half-open peers where they are noticed soonest.
  What silence = What::kHold;
  // So many bytes must have gone to the server before the fault is armed: an answer to a Describe may come at
  // any time, and does not mean that requests are on their way.
  int64_t after_sent = 0;
  // What does not arrive here is waited for. Nobody misses a verdict once the sequence's tokens come.
  bool missed = true;
};

constexpr Step kSteps[] = {
    {"Step2_Admission", Link::kClient, Way::kToServer, "", 0, 700, Bytes::kPlain},
    {"Step4_Open", Link::kDecode0, Way::kToServer, kSessionMark, 0, 400, Bytes::kPlain, Repair::kLease},
    {"Step4_Granted", Link::kDecode0, Way::kToClient, kSessionMark, 0, 150, Bytes::kPlain, Repair::kLease,
     What::kHold, 400},
    {"Step5_PrefillCall", Link::kPrefill0, Way::kToServer, "", 0, 900, Bytes::kPlain, Repair::kPrefill,
     What::kMovedAway},
    {"Step5_FirstToken", Link::kPrefill0, Way::kToClient, "", 0, 100, Bytes::kPlain, Repair::kPrefill,
     What::kHold, 900},
    {"Step5_KvPush", Link::kDecode0, Way::kToServer, kPushMark, 0, 60'000, Bytes::kRows, Repair::kPrefill},
    {"Step6_Verdict", Link::kDecode0, Way::kToClient, kPushMark, 0, 100, Bytes::kSummed, Repair::kPrefill,
     What::kHold, 0, false},
    {"Step6_StepBatch", Link::kDecode0, Way::kToClient, kSessionMark, 150, 300, Bytes::kPlain,
     Repair::kFailover, What::kMovedAway},
    {"Step7_ExpertsOfPrefill", Link::kPrefillExpert0, Way::kToServer, "", 0, 50'000, Bytes::kRows,
     Repair::kExpertsOfPrefill},
    {"Step7_ExpertsOfDecode", Link::kDecodeExpert1, Way::kToClient, "", 150, 50'000, Bytes::kRows,
     Repair::kExpertsOfDecode, What::kMovedAway},
    {"Step8_ClientStream", Link::kClient, Way::kToClient, "", 150, 300, Bytes::kPlain},
};

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
      fault.kind = c.step.bytes == Bytes::kPlain    ? Kind::kFlipChunk
                   : c.step.bytes == Bytes::kSummed ? Kind::kFlip
                                                    : Kind::kFlipInside;
      break;
  }
  return fault;
}

/// Whether somebody must have done something again. A hold that ends is no loss; what a refusal or a long
/// hold meets depends on who was healthy before.
bool MustBeNoticed(const Case& c) {
  if (c.step.repair == Repair::kNone) return false;
  switch (c.what) {
    case What::kCut:
      return true;
    case What::kMovedAway:
      return c.step.missed;
    case What::kFlip:
      return c.step.bytes == Bytes::kRows;
    default:
      return false;
  }
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
  PrintSilence(result);
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
  if (!MustBeNoticed(c)) return;
  EXPECT_GT(since.Of(c.step.repair), 0) << "nothing was done again: nobody noticed";
}

/// Every step is cut, silenced and spoilt.
std::vector<Case> Essential() {
  std::vector<Case> cases;
  for (const Step& step : kSteps)
    for (const What what : {What::kCut, step.silence, What::kFlip}) cases.push_back({step, what});
  return cases;
}

std::vector<Case> TheOthers() {
  std::vector<Case> cases;
  for (const Step& step : kSteps)
    for (const What what : {What::kDelay, What::kHold, What::kRefuse, What::kHoldLong, What::kMovedAway})
      if (what != step.silence) cases.push_back({step, what});
  return cases;
}

const auto kCaseName = [](const auto& info) { return NameOf(info.param); };

INSTANTIATE_TEST_SUITE_P(Steps, LinkFaults, ::testing::ValuesIn(Essential()), kCaseName);
INSTANTIATE_TEST_SUITE_P(DISABLED_Whole, LinkFaults, ::testing::ValuesIn(TheOthers()), kCaseName);

/// Step 9: the clients leave.
class ReleaseFaults : public LinkFaultsBase {
 protected:
  /// While their Closes cannot get through.
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
    ExpectAllLeft(streams.Join());
    // Not yet healed, for all the worker knows: its own clock frees what nobody renews.
    ExpectFreed();
  }
  static void ExpectAllLeft(const StreamsResult& result) {
    for (const Output& output : result.outputs) EXPECT_EQ(output.status.code, 1) << output.status.message;
  }
  /// All that they held, before the link is healed; then all goes on.
  static void ExpectFreed() {
    const TimePoint begin = std::chrono::steady_clock::now();
    ExpectNothingHeld();
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

/// During step 5, while a chunk of theirs waits for an expert service that answers nothing.
TEST_F(ReleaseFaults, Step9_PromptsThatNobodyWaitsFor) {
  AwaitUsed(Role::kPrefill);
  HoldPrefill(Role::kPrefill);
  Streams streams(cluster_->address(), *workload_);
  AwaitPrompts(Role::kPrefill);
  streams.Leave();
  const StreamsResult result = streams.Join();
  ExpectAllLeft(result);
  for (const Output& output : result.outputs)
    EXPECT_TRUE(output.ids.empty()) << "its prompt had been computed";
  ExpectFreed();
}

}  // namespace
}  // namespace cachalot::testing

#pragma once
// What the tests of faults under sixteen streams share: a cluster for each suite, what must hold behind a
// fault, and how to tell that it struck something.

#include <gmock/gmock.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/integration/link_faults_cluster.h"
#include "tests/support/patience.h"

namespace cachalot::testing {

inline constexpr int kMaxTokens = 64;
inline constexpr Duration kSettled = std::chrono::seconds(15) * kSlowdown;
inline constexpr int kUnavailable = 14;

/// Who must do something again when requests on their way are hit.
enum class Repair { kNone, kLease, kPrefill, kFailover, kExpertsOfPrefill, kExpertsOfDecode };

class LinkFaultsBase : public ::testing::Test {
 protected:
  using Role = LinkedCluster::Role;

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

  /// The client's own link broke: what has come is right, and other calls go on behind it. How many broke.
  static size_t ExpectResumable(const StreamsResult& result) {
    Workload rest;
    size_t broken = 0;
    for (size_t i = 0; i < kStreams; ++i) {
      const Output& output = result.outputs[i];
      const std::vector<int32_t>&ids = output.ids, &answer = workload_->answers[i];
      if (output.status.ok()) {
        EXPECT_EQ(ids, answer) << "stream " << i;
        continue;
      }
      ++broken;
      EXPECT_EQ(output.status.code, kUnavailable)
          << "stream " << i << ": " << output.status.code << " " << output.status.message;
      const bool right = ids.size() <= answer.size() && std::equal(ids.begin(), ids.end(), answer.begin());
      EXPECT_TRUE(right) << "stream " << i << " got a wrong token";
      if (!right) continue;
      rest.requests.push_back(workload_->requests[i]);
      rest.requests.back().resume_tokens = ids;
      rest.answers.emplace_back(answer.begin() + static_cast<int64_t>(ids.size()), answer.end());
    }
    const std::string& router = cluster_->member(Role::kRouter, 0).address;
    if (!rest.requests.empty()) ExpectExact(Streams(router, rest).Join(), rest);
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
  /// Over both workers of a role, or the one that runs.
  static double OfBoth(Role role, const std::string& name) {
    double sum = 0;
    for (int i : {0, 1}) {
      if (!cluster_->member(role, i).process->Running()) continue;
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

  /// Until the router gives requests to the first of a role: it may have been away a moment ago. Of workers
  /// without work the first one gets the next.
  static void AwaitUsed(Role role) {
    if (role != Role::kPrefill && role != Role::kDecode) return;
    const std::string at = LinkedCluster::MetricsOf(role, 0);
    const char* const name =
        role == Role::kDecode ? "cachalot_decode_requests_total" : "cachalot_prefill_requests_total";
    const double before = Metric(at, name);
    client::Client client(cluster_->address());
    const TimePoint end = std::chrono::steady_clock::now() + kStrikes;
    while (Metric(at, name) <= before && std::chrono::steady_clock::now() < end)
      (void)Ask(client, IdsRequest({5, 6, 7}, 2, 0.f, 1));
    EXPECT_GT(Metric(at, name), before) << "the router does not use it: the test shows nothing";
  }
  /// No prompt is computed as of now until the link that this returns is healed. An expert service has begun
  /// to answer when it is silenced, for it is the one that is hit then; the others are not to end the first
  /// prompt before.
  static LinkProxy& HoldPrefill(Role victim) {
    LinkProxy& experts = cluster_->link(Link::kPrefillExpert0);
    LinkFault silence{.kind = LinkFault::Kind::kHold};
    if (victim == Role::kExpert) {
      silence.way = Way::kToClient;
      silence.after_bytes = 10'000;  // less than it has to say of a layer of one prompt
    }
    experts.Set(silence);
    return experts;
  }
  /// Behind HoldPrefill: until `victim`, the first of its role, has work of the streams', and will have it
  /// for as long as the link is held. A prefill or decode worker is hit when all prompts are at prefill
  /// workers: none comes later.
  static void AwaitPrompts(Role victim) {
    if (victim == Role::kExpert) {
      EXPECT_TRUE(cluster_->link(Link::kPrefillExpert0).WaitStruck(kStrikes)) << "nobody asked it";
      return;
    }
    const TimePoint end = std::chrono::steady_clock::now() + kStrikes;
    int64_t prompts = 0, share = 0;
    while ((prompts < int64_t{kStreams} || share == 0) && std::chrono::steady_clock::now() < end) {
      prompts = LoadOf(Role::kPrefill, 0).running_sequences() + LoadOf(Role::kPrefill, 1).running_sequences();
      const v1::Load load = LoadOf(victim, 0);
      share = victim == Role::kDecode ? load.leases() : load.running_sequences();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // between looks at other processes
    }
    EXPECT_EQ(prompts, int64_t{kStreams}) << "not all prompts are at prefill workers: the test shows nothing";
    EXPECT_GT(share, 0) << "there is no work at the victim: the test shows nothing";
  }
  static v1::Load LoadOf(Role role, int i) {
    const auto description = ProcessCluster::Describe(cluster_->member(role, i).address);
    EXPECT_TRUE(description.ok()) << description.status();
    return description.ok() ? description->load() : v1::Load();
  }

  static void ExpectNothingHeld() {
    const Status status = cluster_->WaitNothingHeld(kSettled);
    EXPECT_TRUE(status.ok()) << status;
  }
  static void ExpectSettled() {
    cluster_->HealAll();
    ExpectNothingHeld();
    EXPECT_EQ(cluster_->Ended(), "") << "a process ended";
  }

  static void Drain(LinkedCluster::Member& member) {
    member.process->Signal(SIGTERM);
    ExpectDrained(member);
  }
  /// Behind a SIGTERM.
  static void ExpectDrained(LinkedCluster::Member& member) {
    const TimePoint begin = std::chrono::steady_clock::now();
    const auto exit = member.process->Wait(begin + kSettled);
    ASSERT_TRUE(exit.ok()) << exit.status();
    EXPECT_EQ(exit->code, 0) << exit->ToString();
    std::printf("  drained in %.2f s\n", Seconds(std::chrono::steady_clock::now() - begin));
  }

  static inline LinkedCluster* cluster_ = nullptr;
  static inline Workload* workload_ = nullptr;
};

}  // namespace cachalot::testing

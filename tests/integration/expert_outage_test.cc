// An expert shard that is away for longer than its users wait: streams end with its name, nothing is left behind, and
// nobody else has to restart.

#include <gmock/gmock.h>

#include <cstdio>

#include "tests/integration/link_faults_cluster.h"
#include "tests/support/patience.h"

namespace cachalot::testing {
namespace {

using Kind = LinkFault::Kind;

constexpr int kMaxTokens = 64;
constexpr Duration kSettled = std::chrono::seconds(15) * kSlowdown;
constexpr int kUnavailable = 14;

/// A shard that stays away longer than the grace: the only loss that the design allows to end streams.
void OutageEndsStreams(Kind kind) {
  const auto cluster = LinkedCluster::Start({DemoDirectory(), {"--expert-outage-grace-ms", "500"}});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const auto workload = MakeWorkload(kMaxTokens);
  ASSERT_TRUE(workload.ok()) << workload.status();
  LinkProxy& link = (*cluster)->link(Link::kDecodeExpert1);
  const StreamsResult result =
      RunWith((*cluster)->address(), *workload, 200, [&] { link.Set({.kind = kind}); });
  PrintSilence(result);
  for (size_t i = 0; i < kStreams; ++i) {
    const Output& output = result.outputs[i];
    const std::vector<int32_t>& answer = workload->answers[i];
    EXPECT_EQ(output.status.code, kUnavailable) << "stream " << i << ": " << output.status.message;
    EXPECT_THAT(output.status.message, ::testing::HasSubstr("expert shard 1/2")) << "stream " << i;
    ASSERT_LT(output.ids.size(), answer.size());
    EXPECT_TRUE(std::equal(output.ids.begin(), output.ids.end(), answer.begin())) << "stream " << i;
  }
  Status held = (*cluster)->WaitNothingHeld(kSettled);
  EXPECT_TRUE(held.ok()) << held;
  link.Heal();
  const StreamsResult after = Streams((*cluster)->address(), *workload).Join();
  for (size_t i = 0; i < kStreams; ++i) {
    EXPECT_TRUE(after.outputs[i].status.ok()) << after.outputs[i].status.message;
    EXPECT_EQ(after.outputs[i].ids, workload->answers[i]) << "nobody but the shard had to restart";
  }
  held = (*cluster)->WaitNothingHeld(kSettled);
  EXPECT_TRUE(held.ok()) << held;
  EXPECT_EQ((*cluster)->Ended(), "");
}

TEST(ExpertOutage, LongerThanTheGraceFailsStreamsWithTheShardsName) { OutageEndsStreams(Kind::kRefuse); }
TEST(ExpertOutage, AShardThatAnswersNothingDoesTheSame) { OutageEndsStreams(Kind::kHold); }

TEST(ExpertOutage, AShardRefusedForGoodDuringPrefillEndsStreamsWithItsName) {
  const auto cluster = LinkedCluster::Start({.model = DemoDirectory()});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const auto workload = MakeWorkload(kMaxTokens);
  ASSERT_TRUE(workload.ok()) << workload.status();
  LinkProxy& link = (*cluster)->link(Link::kPrefillExpert0);
  link.Set({.kind = Kind::kRefuse});
  const StreamsResult result = Streams((*cluster)->address(), *workload).Join();
  PrintSilence(result);
  for (const Output& output : result.outputs) {
    EXPECT_EQ(output.status.code, kUnavailable) << output.status.message;
    EXPECT_THAT(output.status.message, ::testing::HasSubstr("expert shard 0/2"));
    EXPECT_TRUE(output.ids.empty());
  }
  Status held = (*cluster)->WaitNothingHeld(kSettled);
  EXPECT_TRUE(held.ok()) << held;
  link.Heal();
  const StreamsResult after = Streams((*cluster)->address(), *workload).Join();
  for (size_t i = 0; i < kStreams; ++i)
    EXPECT_EQ(after.outputs[i].ids, workload->answers[i]) << "stream " << i;
  EXPECT_EQ((*cluster)->Ended(), "");
}

TEST(ExpertOutage, ClientsThatLeaveWhileAShardHangsFreeTheirKv) {
  const auto cluster = LinkedCluster::Start({DemoDirectory(), {"--expert-outage-grace-ms", "60000"}});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const auto workload = MakeWorkload(kMaxTokens);
  ASSERT_TRUE(workload.ok()) << workload.status();
  LinkProxy& link = (*cluster)->link(Link::kDecodeExpert1);
  Workload leaving = *workload;
  for (client::GenerateRequest& request : leaving.requests) request.max_tokens = 2000;
  Streams streams((*cluster)->address(), leaving);
  EXPECT_TRUE(streams.WaitTokens(200));
  link.Set({.kind = Kind::kHold});
  EXPECT_TRUE(link.WaitStruck(kStrikes));
  streams.Leave();
  for (const Output& output : streams.Join().outputs)
    EXPECT_EQ(output.status.code, 1) << output.status.message;
  // The link is held for as long as that takes, and longer than any call: only the silence ends the step.
  const TimePoint begin = std::chrono::steady_clock::now();
  Status held = (*cluster)->WaitNothingHeld(kSettled);
  EXPECT_TRUE(held.ok()) << held;
  std::printf("  freed %.2f s after the last stream left\n",
              Seconds(std::chrono::steady_clock::now() - begin));
  link.Heal();
  const StreamsResult after = Streams((*cluster)->address(), *workload).Join();
  for (size_t i = 0; i < kStreams; ++i)
    EXPECT_EQ(after.outputs[i].ids, workload->answers[i]) << "stream " << i;
  held = (*cluster)->WaitNothingHeld(kSettled);
  EXPECT_TRUE(held.ok()) << held;
}

}  // namespace
}  // namespace cachalot::testing

// The demo checkpoint quotes its verses through the cluster.

#include <atomic>
#include <cstdlib>
#include <thread>

#include "tests/integration/cluster_fixture.h"

namespace cachalot::testing {
namespace {

constexpr uint32_t kSeed = 300;

class Verses : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { cluster_ = MustStart({.model = DemoDirectory()}).release(); }
  static void TearDownTestSuite() { delete cluster_; }
  void SetUp() override { ASSERT_NE(cluster_, nullptr); }

  static void Quote(client::Client& client, const Verse& verse) {
    const Output output = Ask(client, ChatRequest(verse.reference));
    EXPECT_TRUE(output.status.ok()) << verse.reference << ": " << output.status.message;
    EXPECT_EQ(output.text, verse.text) << verse.reference;
    EXPECT_EQ(output.finish_reason, "stop") << verse.reference;
  }

  static void QuoteConcurrently(const std::vector<Verse>& verses, int clients) {
    std::atomic<size_t> next = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < clients; ++i)
      threads.emplace_back([&] {
        client::Client client(cluster_->router());
        for (size_t at; (at = next++) < verses.size();) Quote(client, verses[at]);
      });
    for (auto& thread : threads) thread.join();
  }

  static ProcessCluster* cluster_;
};
ProcessCluster* Verses::cluster_ = nullptr;

TEST_F(Verses, ThreeHundredSampledAlone) {
  client::Client client(cluster_->router());
  for (const Verse& verse : SampleVerses(300, kSeed)) Quote(client, verse);
}

TEST_F(Verses, ThreeHundredSampledWithSixteenClients) { QuoteConcurrently(SampleVerses(300, kSeed + 1), 16); }

TEST_F(Verses, DISABLED_WholeKey) { QuoteConcurrently(LoadVerses(), 16); }

TEST_F(Verses, NothingIsHeldAfterwards) {
  const Status status = cluster_->WaitNothingHeld(std::chrono::seconds(10));
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace cachalot::testing

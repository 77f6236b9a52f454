#include "router/prefix_locality.h"

#include <gmock/gmock.h>

#include <numeric>

#include "tests/router/flow_harness.h"

namespace cachalot {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

std::vector<int32_t> Tokens(int64_t count, int32_t first = 0) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

TEST(PrefixLocality, APrefixIsWholeBlocksAndAllBeforeThem) {
  EXPECT_THAT(PrefixLocality::PrefixOf(Tokens(127)), IsEmpty());
  EXPECT_EQ(PrefixLocality::PrefixOf(Tokens(128)).size(), 1u);
  const auto whole = PrefixLocality::PrefixOf(Tokens(400));
  ASSERT_EQ(whole.size(), 3u);
  auto other = Tokens(400);
  other[130] = 7;
  const auto changed = PrefixLocality::PrefixOf(other);
  EXPECT_EQ(changed[0], whole[0]);
  EXPECT_FALSE(changed[1] == whole[1]);
  EXPECT_FALSE(changed[2] == whole[2]) << "its own tokens are the same, not those before";
}

TEST(PrefixLocality, FindsHowMuchEachHasWithoutAGap) {
  PrefixLocality locality;
  const auto prompt = PrefixLocality::PrefixOf(Tokens(600));
  EXPECT_THAT(locality.Find(prompt), IsEmpty());
  const PrefixHolder a{1, 10}, b{2, 20};
  locality.Remember(PrefixLocality::PrefixOf(Tokens(300)), a);
  locality.Remember(PrefixLocality::PrefixOf(Tokens(520)), b);
  locality.Remember(PrefixLocality::PrefixOf(Tokens(300, 9)), {3, 30});
  EXPECT_THAT(locality.Find(prompt), ElementsAre(Pair(a, 256), Pair(b, 512)));
  EXPECT_THAT(locality.Find(PrefixLocality::PrefixOf(Tokens(200))), ElementsAre(Pair(a, 128), Pair(b, 128)));
}

TEST(PrefixLocality, AnotherLifeOfAWorkerTakesThePlaceOfTheOneBefore) {
  PrefixLocality locality;
  const auto prompt = PrefixLocality::PrefixOf(Tokens(300));
  locality.Remember(prompt, {1, 10});
  locality.Remember(PrefixLocality::PrefixOf(Tokens(130)), {1, 11});
  EXPECT_THAT(locality.Find(prompt), ElementsAre(Pair(PrefixHolder{1, 11}, 128)))
      << "the old life has a gap, and nothing anyway";
}

TEST(PrefixLocality, KeepsWhatWasPrefilledLastBeginningsLongest) {
  PrefixLocality locality(4);
  const auto first = PrefixLocality::PrefixOf(Tokens(384)),
             second = PrefixLocality::PrefixOf(Tokens(256, 5000));
  locality.Remember(first, {1, 0});
  locality.Remember(second, {2, 0});
  EXPECT_EQ(locality.blocks(), 4u);
  EXPECT_THAT(locality.Find(first), ElementsAre(Pair(PrefixHolder{1, 0}, 256))) << "its end has gone";
  locality.Remember(first, {1, 0});
  EXPECT_THAT(locality.Find(first), ElementsAre(Pair(PrefixHolder{1, 0}, 384)));
  EXPECT_THAT(locality.Find(second), ElementsAre(Pair(PrefixHolder{2, 0}, 128)));
  locality.Remember(PrefixLocality::PrefixOf(Tokens(128 * 10, 9000)), {3, 0});
  EXPECT_EQ(locality.blocks(), 4u);
}

}  // namespace

namespace testing {
namespace {

class PrefixFlowTest : public FlowTest {
 protected:
  PrefixFlowTest() {
    AddPrefill();
    state_.prompt = Tokens(300);
  }
  /// Which prefill worker a request goes to that ends there, as it should.
  size_t Prefilled() {
    const size_t before[] = {prefill(0).calls.size(), prefill(1).calls.size()};
    client_.started = 0;
    result_.reset();
    Run();
    lease().Grant();
    Settle();
    const size_t worker = prefill(1).calls.size() > before[1] ? 1 : 0;
    EXPECT_EQ(prefill(worker).calls.size(), before[worker] + 1);
    call(worker).FirstToken(FinishReason::kLength);
    EXPECT_TRUE(Outcome().ok());
    return worker;
  }
  /// To where the second worker has the prompt.
  void PrefillOnTheSecond() {
    prefill(0).reported.waiting_tokens = 50;
    ASSERT_EQ(Prefilled(), 1u);
    prefill(0).reported = kIdle;
  }
};

TEST_F(PrefixFlowTest, TheSamePrefixGoesWhereItIsUnlessThatIsMuchBusier) {
  PrefillOnTheSecond();
  EXPECT_EQ(Prefilled(), 1u);
  state_.prompt.resize(290);
  EXPECT_EQ(Prefilled(), 1u);
  {
    const WorkerPool<PrefillWorker>::Assignment busy(&prefill_pool_, 1, 255);
    EXPECT_EQ(Prefilled(), 1u);
  }
  {
    const WorkerPool<PrefillWorker>::Assignment busier(&prefill_pool_, 1, 257);
    EXPECT_EQ(Prefilled(), 0u);
  }
  state_.prompt = Tokens(300, 77);
  EXPECT_EQ(Prefilled(), 0u) << "another prompt: the order given";
}

TEST_F(PrefixFlowTest, AWorkerThatHasRestartedHasNothing) {
  PrefillOnTheSecond();
  prefill(1).lives = 1;
  EXPECT_EQ(Prefilled(), 0u);
}

TEST_F(PrefixFlowTest, AWorkerThatCannotBeUsedIsNotPreferred) {
  PrefillOnTheSecond();
  prefill(1).status = Unavailable("gone");
  EXPECT_EQ(Prefilled(), 0u);
}

TEST_F(PrefixFlowTest, RowsOfThePromptAreComputedInAnyCase) {
  PrefillOnTheSecond();
  state_.params.prompt_logprobs = 1;
  const size_t before = prefill(0).calls.size();
  client_.started = 0;
  result_.reset();
  Run();
  lease().Grant();
  Settle();
  ASSERT_EQ(prefill(0).calls.size(), before + 1);
  call().PromptRows(1, 299);
  call().FirstToken(FinishReason::kLength);
  Outcome().IgnoreError();
}

}  // namespace
}  // namespace testing
}  // namespace cachalot

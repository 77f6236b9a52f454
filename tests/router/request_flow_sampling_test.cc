// What the flow does for log probabilities, outputs that end on the router's side, and siblings.

#include <gmock/gmock.h>

#include <limits>

#include "tests/router/flow_harness.h"

namespace cachalot::testing {
namespace {

using ::testing::ElementsAre;
using Kind = FlowEvent::Kind;

TokenLogprobs LogprobsAt(int64_t index) {
  return {-0.5f * static_cast<float>(index), {{TokenAt(index), -1.f}}};
}

/// A client that wants log probabilities and has enough after some tokens.
class ChoosyClient final : public FlowSink {
 public:
  rpc::Task<bool> Started() override { co_return true; }
  rpc::Task<bool> Tokens(std::vector<int32_t> more) override {
    tokens.insert(tokens.end(), more.begin(), more.end());
    co_return true;
  }
  rpc::Task<bool> Logits(int64_t, std::vector<float>) override { co_return true; }
  void Logprobs(std::vector<TokenLogprobs> of_next_tokens) override {
    logprobs.insert(logprobs.end(), of_next_tokens.begin(), of_next_tokens.end());
  }
  rpc::Task<bool> PromptLogprobs(int64_t first, std::vector<TokenLogprobs> entries) override {
    EXPECT_EQ(first, static_cast<int64_t>(prompt.size()) + 1);
    prompt.insert(prompt.end(), entries.begin(), entries.end());
    co_return true;
  }
  bool Complete() const override { return tokens.size() >= enough; }

  size_t enough = 1000;
  std::vector<int32_t> tokens;
  std::vector<TokenLogprobs> logprobs, prompt;
};

class SamplingFlowTest : public FlowTest {
 protected:
  static rpc::Task<void> Keep(SamplingFlowTest* test, Siblings* siblings) {
    StatusOr<FlowResult> result = co_await RunRequest(&test->context_, test->state_, &test->choosy_, {},
                                                      &test->cancel_, TimePoint::max(), siblings);
    test->result_.emplace(std::move(result));
  }
  void RunChoosy(Siblings* siblings = nullptr) {
    ASSERT_TRUE(loop_.Spawn(Keep(this, siblings), "request"));
    Settle();
  }
  FlowEvent First(uint32_t attempt) {
    FlowEvent event = EventOf(Kind::kFirstToken, attempt);
    event.token = TokenAt(0);
    event.logprobs = {LogprobsAt(0)};
    return event;
  }
  FlowEvent Prompt(uint32_t attempt, int64_t first, int64_t count) {
    FlowEvent event = EventOf(Kind::kPromptLogprobs, attempt);
    event.first_row = first;
    for (int64_t i = 0; i < count; ++i) event.logprobs.push_back(LogprobsAt(first + i));
    return event;
  }
  void PushToken(int64_t index, bool with_logprobs = true) {
    FlowEvent event = EventOf(Kind::kToken);
    event.index = index;
    event.token = TokenAt(index);
    if (with_logprobs) event.logprobs = {LogprobsAt(index)};
    lease().queue->Push(std::move(event));
  }

  ChoosyClient choosy_;
};

TEST_F(SamplingFlowTest, ACompleteOutputEndsTheRequestAndItsLease) {
  choosy_.enough = 3;
  RunChoosy();
  lease().Grant();
  Settle();
  call().FirstToken();
  call().Commit();
  lease().Tokens(1, 2);
  Settle();
  EXPECT_FALSE(done());
  lease().Tokens(2, 3);
  Settle();
  ASSERT_TRUE(done());
  ASSERT_TRUE(result_->ok()) << result_->status();
  EXPECT_EQ((*result_)->finish, FinishReason::kStop);
  EXPECT_EQ(open_calls(), 0);
}

TEST_F(SamplingFlowTest, ACompleteFirstTokenEndsThePrefillToo) {
  choosy_.enough = 1;
  RunChoosy();
  lease().Grant();
  Settle();
  call().FirstToken();
  Settle();
  ASSERT_TRUE(done());
  EXPECT_TRUE(result_->ok()) << result_->status();
  EXPECT_EQ(open_calls(), 0);
}

TEST_F(SamplingFlowTest, ACompleteOutputIsNoFailureWhateverComesBehindIt) {
  choosy_.enough = 1;
  RunChoosy();
  lease().Grant();
  Settle();
  call().FirstToken();
  call().Fail(Unavailable("died"));
  lease().Fail(Unavailable("died"));
  Settle();
  ASSERT_TRUE(done());
  EXPECT_TRUE(result_->ok()) << result_->status();
  EXPECT_THAT(choosy_.tokens, ElementsAre(TokenAt(0)));
}

TEST_F(SamplingFlowTest, EachLogprobComesOnceAcrossAttempts) {
  state_.params.sampling.logprobs = 1;
  state_.params.prompt_logprobs = 1;
  state_.prompt = {1, 2, 3, 4, 5};
  AddPrefill();
  choosy_.enough = 3;
  RunChoosy();
  lease().Grant();
  Settle();
  call(0).Push(Prompt(1, 1, 2));
  call(0).Fail(Unavailable("died"));
  Settle();
  ASSERT_EQ(prefill(1).calls.size(), 1u);
  EXPECT_EQ(call(1).state.params.prompt_logprobs, 1);
  call(1).Push(Prompt(2, 1, 1));
  call(1).Push(Prompt(2, 2, 3));
  call(1).Push(First(2));
  call(1).Commit();
  PushToken(1);
  Settle();
  PushToken(2);
  Settle();
  ASSERT_TRUE(done());
  EXPECT_TRUE(result_->ok()) << result_->status();
  EXPECT_THAT(choosy_.prompt, ElementsAre(LogprobsAt(1), LogprobsAt(2), LogprobsAt(3), LogprobsAt(4)));
  EXPECT_THAT(choosy_.logprobs, ElementsAre(LogprobsAt(0), LogprobsAt(1), LogprobsAt(2)));
  EXPECT_THAT(choosy_.tokens, ElementsAre(TokenAt(0), TokenAt(1), TokenAt(2)));
}

TEST_F(SamplingFlowTest, AnotherPairIsNotAskedForPromptLogprobsThatTheClientHas) {
  state_.params.sampling.logprobs = 0;
  state_.params.prompt_logprobs = 0;
  AddDecode();
  choosy_.enough = 3;
  RunChoosy();
  lease(0).Grant();
  Settle();
  call().Push(Prompt(1, 1, 2));
  call().Push(First(1));
  call().Commit();
  Settle();
  lease(0).Fail(Unavailable("died"));
  Settle();
  ASSERT_EQ(decode(1).leases.size(), 1u);
  lease(1).Grant();
  Settle();
  ASSERT_EQ(prefill().calls.size(), 2u);
  EXPECT_EQ(call().state.params.prompt_logprobs, kNoLogprobs);
  EXPECT_EQ(call().state.params.sampling.logprobs, 0);
  cancel_.Cancel();
  Settle();
  EXPECT_TRUE(done());
}

TEST_F(SamplingFlowTest, LogprobsOfMoreThanThePromptHasAreAnError) {
  state_.params.prompt_logprobs = 0;
  RunChoosy();
  lease().Grant();
  Settle();
  call().Push(Prompt(1, 1, static_cast<int64_t>(state_.prompt.size())));
  Settle();
  ASSERT_TRUE(done());
  EXPECT_EQ(result_->status().code(), StatusCode::kInternal);
  EXPECT_TRUE(choosy_.prompt.empty());
}

TEST_F(SamplingFlowTest, LogprobsFromBeforeThePromptAreAnError) {
  state_.params.prompt_logprobs = 0;
  RunChoosy();
  lease().Grant();
  Settle();
  FlowEvent event = Prompt(1, 1, 1);
  event.first_row = std::numeric_limits<int64_t>::min();
  call().Push(std::move(event));
  Settle();
  ASSERT_TRUE(done());
  EXPECT_EQ(result_->status().code(), StatusCode::kInternal);
}

TEST_F(SamplingFlowTest, ATokenWithoutItsLogprobIsAnError) {
  state_.params.sampling.logprobs = 0;
  RunChoosy();
  lease().Grant();
  Settle();
  call().Push(First(1));
  call().Commit();
  PushToken(1, false);
  Settle();
  ASSERT_TRUE(done());
  EXPECT_EQ(result_->status().code(), StatusCode::kInternal);
}

TEST_F(SamplingFlowTest, SiblingsShareAPrefillWorkerWhileItWorks) {
  AddPrefill();
  AddPrefill();
  Siblings siblings{.prefill_worker = 2};
  RunChoosy(&siblings);
  lease().Grant();
  Settle();
  ASSERT_EQ(prefill(2).calls.size(), 1u);
  call(2).Fail(Unavailable("died"));
  Settle();
  ASSERT_EQ(prefill(0).calls.size(), 1u) << "the retry goes elsewhere";
  EXPECT_EQ(siblings.prefill_worker, 0u) << "and takes the siblings along";
  cancel_.Cancel();
  Settle();
  EXPECT_TRUE(done());
}

TEST_F(SamplingFlowTest, ASiblingsWorkerThatIsAwayIsNotWaitedFor) {
  AddPrefill();
  prefill(1).status = Unavailable("away");
  Siblings siblings{.prefill_worker = 1};
  RunChoosy(&siblings);
  lease().Grant();
  Settle();
  EXPECT_EQ(prefill(0).calls.size(), 1u);
  cancel_.Cancel();
  Settle();
  EXPECT_TRUE(done());
}

}  // namespace
}  // namespace cachalot::testing

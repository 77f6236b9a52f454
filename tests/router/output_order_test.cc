#include "router/output_order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace cachalot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

SequenceState State(int64_t max_tokens = 10) {
  SequenceState state;
  state.prompt = {1, 2, 3, 4};
  state.params.max_tokens = max_tokens;
  return state;
}

FlowEvent Event(int64_t index, FinishReason finish = FinishReason::kNone) {
  FlowEvent event;
  event.index = index;
  event.token = static_cast<int32_t>(100 + index);
  event.finish = finish;
  return event;
}

std::vector<TokenLogprobs> Entries(int64_t first, int64_t count) {
  std::vector<TokenLogprobs> entries;
  for (int64_t i = first; i < first + count; ++i) entries.push_back({-static_cast<float>(i), {}});
  return entries;
}

class OutputOrderTest : public ::testing::Test {
 protected:
  Status First(int64_t index, FinishReason finish = FinishReason::kNone) {
    FlowEvent event = Event(index, finish);
    return output_.First(event);
  }
  Status Token(int64_t index, FinishReason finish = FinishReason::kNone) {
    FlowEvent event = Event(index, finish);
    return output_.Token(event);
  }
  std::vector<int32_t> Taken() { return output_.Take().tokens; }

  OutputOrder output_{State()};
};

TEST_F(OutputOrderTest, TokensThatOvertakeTheFirstWaitForIt) {
  EXPECT_TRUE(Token(1).ok());
  EXPECT_TRUE(Token(2).ok());
  EXPECT_THAT(Taken(), IsEmpty());
  EXPECT_TRUE(output_.first_token_missing());
  EXPECT_TRUE(First(0).ok());
  EXPECT_FALSE(output_.first_token_missing());
  EXPECT_THAT(Taken(), ElementsAre(100, 101, 102));
  EXPECT_TRUE(Token(3).ok());
  EXPECT_THAT(Taken(), ElementsAre(103));
  EXPECT_THAT(Taken(), IsEmpty()) << "once";
  EXPECT_THAT(output_.tokens(), ElementsAre(100, 101, 102, 103));
}

TEST_F(OutputOrderTest, WhatTheClientHasComesOnce) {
  EXPECT_TRUE(First(0).ok());
  EXPECT_TRUE(First(0).ok());
  EXPECT_TRUE(Token(1).ok());
  EXPECT_TRUE(Token(1).ok());
  EXPECT_THAT(Taken(), ElementsAre(100, 101));
}

TEST_F(OutputOrderTest, AMissingTokenIsInternal) {
  EXPECT_EQ(Token(2).code(), StatusCode::kInternal) << "behind one that overtook nothing";
  EXPECT_EQ(First(1).code(), StatusCode::kInternal);
  EXPECT_TRUE(First(0).ok());
  const Status gap = Token(2);
  EXPECT_EQ(gap.code(), StatusCode::kInternal);
  EXPECT_THAT(std::string(gap.message()), HasSubstr("output token 2 came before token 1"));
}

TEST_F(OutputOrderTest, AnotherPairForgetsWhatOvertookAndGoesOnBehindTheOutput) {
  EXPECT_TRUE(First(0).ok());
  output_.NewPair();
  EXPECT_TRUE(output_.first_token_missing());
  EXPECT_TRUE(Token(2).ok()) << "overtakes token 1";
  output_.NewPair();
  EXPECT_TRUE(First(1).ok());
  EXPECT_THAT(Taken(), ElementsAre(100, 101)) << "token 2 was the other pair's";
}

TEST_F(OutputOrderTest, ItEndsOnceAndWithTheLastTokenAtTheLatest) {
  EXPECT_TRUE(Token(1, FinishReason::kStop).ok());
  EXPECT_TRUE(Token(2).ok());
  EXPECT_FALSE(output_.finished());
  EXPECT_TRUE(First(0).ok());
  EXPECT_EQ(output_.finish(), FinishReason::kStop);
  EXPECT_THAT(Taken(), ElementsAre(100, 101)) << "nothing behind the end";

  output_ = OutputOrder(State(2));
  EXPECT_TRUE(First(0).ok());
  EXPECT_THAT(std::string(Token(1).message()), HasSubstr("output token 1 is the last of 2"));
}

TEST_F(OutputOrderTest, EmittedTokensAreTheClients) {
  SequenceState state = State();
  state.emitted = {100, 101};
  output_ = OutputOrder(state);
  EXPECT_EQ(output_.next_index(), 2);
  EXPECT_TRUE(First(1).ok());
  EXPECT_TRUE(First(2).ok());
  EXPECT_THAT(Taken(), ElementsAre(102));
}

TEST_F(OutputOrderTest, AWantedLogProbabilityMayNotBeMissing) {
  SequenceState state = State();
  state.params.sampling.logprobs = 0;
  output_ = OutputOrder(state);
  EXPECT_EQ(First(0).code(), StatusCode::kInternal);
  FlowEvent event = Event(0);
  event.logprobs = Entries(7, 1);
  EXPECT_TRUE(output_.First(event).ok());
  const OutputOrder::Next next = output_.Take();
  ASSERT_EQ(next.logprobs.size(), 1u);
  EXPECT_EQ(next.logprobs[0].chosen, -7.f);
}

TEST_F(OutputOrderTest, RowsOfLogitsAreOfTheTokenBeforeTheirs) {
  FlowEvent event = Event(0);
  event.logits = {1.f, 2.f};
  EXPECT_TRUE(output_.First(event).ok());
  const OutputOrder::Next next = output_.Take();
  ASSERT_EQ(next.logits.size(), 1u);
  EXPECT_EQ(next.logits[0].first, 3) << "the prompt's last row";
}

TEST_F(OutputOrderTest, PromptLogProbabilitiesComeOnceAndInOrder) {
  EXPECT_FALSE(output_.has_prompt_logprobs());
  const auto take = [&](int64_t first, int64_t count) {
    auto missing = output_.PromptLogprobs(first, Entries(first, count));
    EXPECT_TRUE(missing.ok());
    return missing.value_or(std::pair(int64_t{-1}, std::vector<TokenLogprobs>{}));
  };
  const auto [first, entries] = take(1, 2);
  EXPECT_EQ(first, 1);
  EXPECT_EQ(entries.size(), 2u);
  EXPECT_THAT(take(1, 1).second, IsEmpty());
  const auto [next, rest] = take(1, 3);  // another attempt, of which the last is new
  EXPECT_EQ(next, 3);
  ASSERT_EQ(rest.size(), 1u);
  EXPECT_EQ(rest[0].chosen, -3.f);
  EXPECT_TRUE(output_.has_prompt_logprobs());
}

TEST_F(OutputOrderTest, PromptLogProbabilitiesOfNoPromptTokenAreInternal) {
  EXPECT_EQ(output_.PromptLogprobs(0, Entries(0, 1)).status().code(), StatusCode::kInternal);
  EXPECT_EQ(output_.PromptLogprobs(5, {}).status().code(), StatusCode::kInternal);
  EXPECT_EQ(output_.PromptLogprobs(1, Entries(1, 4)).status().code(), StatusCode::kInternal);
  EXPECT_EQ(output_.PromptLogprobs(2, Entries(2, 1)).status().code(), StatusCode::kInternal) << "before token 1";
}

}  // namespace
}  // namespace cachalot

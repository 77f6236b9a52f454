// The way of a request on which nothing fails, and what its end looks like to everybody.

#include <gmock/gmock.h>

#include "tests/router/flow_harness.h"

namespace cachalot::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Kind = FlowEvent::Kind;

TEST_F(FlowTest, GoesItsWay) {
  Run();
  // 4. The lease is asked for with the whole state; nothing is started before it is granted.
  ASSERT_EQ(decode().leases.size(), 1u);
  EXPECT_EQ(lease().state.prompt, state_.prompt);
  EXPECT_EQ(client_.started, 0);
  EXPECT_TRUE(prefill().calls.empty());
  lease().Grant();
  Settle();
  // 5.
  EXPECT_EQ(client_.started, 1);
  ASSERT_EQ(prefill().calls.size(), 1u);
  EXPECT_EQ(call().options.attempt, 1u);
  EXPECT_EQ(call().state.prompt, state_.prompt);
  call().FirstToken();
  Settle();
  EXPECT_THAT(client_.messages, ElementsAre(ElementsAre(TokenAt(0))));
  call().Commit();
  // 6.-8.
  lease().Tokens(1, 2);
  Settle();
  lease().Tokens(2, 4);
  Settle();
  lease().Tokens(4, 5, FinishReason::kStop);
  Settle();
  ASSERT_TRUE(Outcome().ok());
  EXPECT_THAT(client_.messages, ElementsAre(ElementsAre(TokenAt(0)), ElementsAre(TokenAt(1)),
                                            ElementsAre(TokenAt(2), TokenAt(3)), ElementsAre(TokenAt(4))));
  EXPECT_THAT(lease().acknowledged, ElementsAre(1, 2, 4, 5));
  EXPECT_EQ((*result_)->finish, FinishReason::kStop);
  EXPECT_EQ((*result_)->output_tokens, 5);
  EXPECT_EQ(client_.started, 1);
  EXPECT_EQ(open_calls(), 0);  // 9.
  EXPECT_EQ(context_.counters.prefill_retries + context_.counters.decode_failovers, 0);
}

TEST_F(FlowTest, FirstTokenIsTheLast) {
  decode().on_open = [](auto& lease) { lease.Grant(); };
  prefill().on_start = [](auto& call) { call.FirstToken(FinishReason::kLength); };
  Run();
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(1));
  EXPECT_EQ((*result_)->finish, FinishReason::kLength);
  EXPECT_EQ((*result_)->output_tokens, 1);
}

TEST_F(FlowTest, GoesOnBehindResumedTokens) {
  state_.emitted = {TokenAt(0), TokenAt(1), TokenAt(2)};
  Run();
  EXPECT_EQ(lease().state.emitted, state_.emitted);
  lease().Grant();
  Settle();
  call().FirstToken();
  call().Commit();
  lease().Tokens(4, 6, FinishReason::kLength);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(6));
  EXPECT_EQ((*result_)->output_tokens, 6);
}

TEST_F(FlowTest, DecodeTokensMayOvertakeTheFirstToken) {
  Run();
  lease().Grant();
  Settle();
  lease().Tokens(1, 3);
  Settle();
  EXPECT_TRUE(client_.messages.empty());
  lease().Tokens(3, 4, FinishReason::kStop);
  call().FirstToken();
  call().Commit();
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(4));
  EXPECT_EQ((*result_)->finish, FinishReason::kStop);
}

TEST_F(FlowTest, NothingIsTakenBehindTheEnd) {
  Run();
  lease().Grant();
  Settle();
  call().FirstToken();
  lease().Tokens(1, 3, FinishReason::kStop);
  lease().Tokens(3, 5);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(3));
}

TEST_F(FlowTest, ASlowClientHoldsTheAcknowledgements) {
  RunToStreaming();
  const size_t before = lease().acknowledged.size();
  client_.go_on.Reset();
  lease().Tokens(2, 3);
  Settle();
  lease().Tokens(3, 6);
  Settle();
  EXPECT_EQ(lease().acknowledged.size(), before);
  client_.go_on.Set();
  Settle();
  EXPECT_EQ(lease().acknowledged.back(), 6);
  lease().Tokens(6, 7, FinishReason::kLength);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(7));
}

TEST_F(FlowTest, ThePrefillWorkersLoadEndsWithTheCommit) {
  Run();
  lease().Grant();
  Settle();
  EXPECT_THAT(prefill_pool_.Choose({}, {})->reason, HasSubstr("assigned 3,"));
  call().FirstToken();
  Settle();
  EXPECT_THAT(prefill_pool_.Choose({}, {})->reason, HasSubstr("assigned 3,"));
  call().Commit();
  Settle();
  EXPECT_THAT(prefill_pool_.Choose({}, {})->reason, HasSubstr("assigned 0,"));
  EXPECT_THAT(decode_pool_.Choose({}, {})->reason, HasSubstr("assigned 1,"));
  lease().Tokens(1, 2, FinishReason::kStop);
  EXPECT_TRUE(Outcome().ok());
}

TEST_F(FlowTest, LogitsRowsAreTheSequences) {
  state_.want_logits = true;
  Run(TimePoint::max(), {.max_chunk_tokens = 2});
  lease().Grant();
  Settle();
  EXPECT_EQ(call().options.max_chunk_tokens, 2);
  call().Logits(0, {0.5f, 1.5f});
  call().Logits(2, {2.5f});
  call().FirstToken();
  lease().Tokens(1, 3, FinishReason::kLength);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_THAT(client_.rows, ElementsAre(std::pair(int64_t{0}, std::vector<float>{0.5f, 1.5f}),
                                        std::pair(int64_t{2}, std::vector<float>{2.5f}),
                                        std::pair(int64_t{3}, std::vector<float>{1.f}),
                                        std::pair(int64_t{4}, std::vector<float>{2.f})));
}

TEST_F(FlowTest, AGapInTheTokensIsABug) {
  RunToStreaming();
  lease().Tokens(2, 3);
  lease().Tokens(4, 5);
  const Status status = Outcome();
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(StatusMessage(status), "output token 4 came before token 3");
  EXPECT_EQ(client_.tokens(), Expected(3));  // what came before it is the client's
  EXPECT_EQ(decode().leases.size(), 1u);
}

TEST_F(FlowTest, AGapBehindAMissingFirstTokenIsABug) {
  Run();
  lease().Grant();
  Settle();
  lease().Tokens(2, 3);
  EXPECT_EQ(Outcome().code(), StatusCode::kInternal);
  EXPECT_TRUE(client_.messages.empty());
}

TEST_F(FlowTest, TokensThatTheClientHasAreDropped) {
  RunToStreaming();
  lease().Tokens(0, 3);
  lease().Tokens(1, 4, FinishReason::kStop);
  ASSERT_TRUE(Outcome().ok());
  EXPECT_EQ(client_.tokens(), Expected(4));
}

}  // namespace
}  // namespace cachalot::testing

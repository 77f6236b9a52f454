#include "prefill_worker/prefill_flow.h"

#include <gmock/gmock.h>

#include "tests/prefill_worker/prefill_flow_fixture.h"

namespace cachalot {
namespace {

using testing::HandOffBytes;
using testing::PrefillFlowTest;
using testing::Recorder;
using testing::SameBits;

TEST_F(PrefillFlowTest, FirstTokenIsTheOracles) {
  const auto sink = Alone(m_.State(m_.oracle.input_ids));
  EXPECT_EQ(sink->token, m_.oracle.greedy_tokens[0]);
  EXPECT_EQ(sink->computed, static_cast<int64_t>(m_.oracle.input_ids.size()));
  EXPECT_EQ(sink->finish, FinishReason::kNone);
  EXPECT_EQ(sink->kv.tokens(), sink->computed);
}

TEST_F(PrefillFlowTest, JobsThatShareChunksGetTheSameBitsAsAlone) {
  std::vector<SequenceState> states = {m_.State(m_.oracle.input_ids), m_.State(m_.Prompt(1, 1)),
                                       m_.State(m_.Prompt(131, 2)), m_.State(m_.Prompt(17, 3)),
                                       m_.State(m_.Prompt(260, 4))};
  states[3].emitted = m_.Prompt(9, 5);
  states[4].params.sampling = {1.f, 0, 0.9f, 17};
  std::vector<std::shared_ptr<Recorder>> alone;
  for (const SequenceState& state : states) alone.push_back(Alone(state));
  for (const int64_t budget : {1, 5, 64}) {
    PrefillFlow flow(m_.model, m_.experts, budget);
    std::vector<std::shared_ptr<Recorder>> sinks;
    // The limits make each chunk a mixture.
    for (size_t i = 0; i < states.size(); ++i)
      sinks.push_back(Submit(flow, i + 1, states[i], static_cast<int64_t>(i % 3 + 1) * budget / 3));
    while (flow.Step()) EXPECT_LE(flow.last_chunk_tokens(), budget);
    for (size_t i = 0; i < states.size(); ++i) {
      ASSERT_TRUE(sinks[i]->done());
      const auto tokens = static_cast<int64_t>(states[i].Context().size());
      EXPECT_EQ(sinks[i]->token, alone[i]->token) << "job " << i;
      EXPECT_TRUE(SameBits(HandOffBytes(sinks[i]->kv, tokens), HandOffBytes(alone[i]->kv, tokens)))
          << "job " << i << " under a budget of " << budget;
    }
  }
}

TEST_F(PrefillFlowTest, GivesEveryRowOfLogitsWhenWanted) {
  SequenceState state = m_.State(m_.oracle.input_ids);
  state.want_logits = true;
  state.forced = {7, 8};
  PrefillFlow flow(m_.model, m_.experts, 32);
  const auto other = Submit(flow, 1, m_.State(m_.Prompt(40, 1)), 8);
  const auto sink = Submit(flow, 2, state);
  while (flow.Step()) {
  }
  EXPECT_EQ(sink->token, 7);
  EXPECT_TRUE(other->all_logits.empty());
  ASSERT_EQ(sink->all_logits.size(), m_.oracle.prompt_logits.size());
  for (size_t i = 0; i < sink->all_logits.size(); ++i)
    ASSERT_NEAR(sink->all_logits[i], m_.oracle.prompt_logits[i], 1e-4) << i;
}

TEST_F(PrefillFlowTest, SaysWhenTheFirstTokenIsTheLast) {
  EXPECT_EQ(Alone(m_.State(m_.oracle.input_ids, 1))->finish, FinishReason::kLength);
  SequenceState state = m_.State(m_.oracle.input_ids);
  state.params.stop_token_ids = {m_.oracle.greedy_tokens[0]};
  EXPECT_EQ(Alone(state)->finish, FinishReason::kStop);
}

TEST_F(PrefillFlowTest, CountsWhatIsWaiting) {
  PrefillFlow flow(m_.model, m_.experts, 16);
  EXPECT_FALSE(flow.Step());
  Submit(flow, 1, m_.State(m_.Prompt(20, 1)));
  Submit(flow, 2, m_.State(m_.Prompt(30, 2)));
  EXPECT_EQ(flow.waiting(), 2u);
  EXPECT_EQ(flow.waiting_tokens(), 50);
  EXPECT_TRUE(flow.Step());
  EXPECT_EQ(flow.waiting_tokens(), 34);
  EXPECT_TRUE(flow.Step());
  EXPECT_EQ(flow.waiting(), 1u);
  EXPECT_EQ(flow.waiting_tokens(), 18);
}

TEST_F(PrefillFlowTest, CancelFreesAndLeavesTheOthersAlone) {
  const SequenceState kept = m_.State(m_.Prompt(100, 1));
  const auto alone = Alone(kept);
  const int64_t before = m_.pools.used_blocks();
  PrefillFlow flow(m_.model, m_.experts, 32);
  const auto first = Submit(flow, 1, m_.State(m_.Prompt(90, 2)), 16);
  const auto sink = Submit(flow, 2, kept);
  const auto last = Submit(flow, 3, m_.State(m_.Prompt(90, 3)));
  flow.Step();
  const int64_t heard = first->computed;
  EXPECT_GT(heard, 0);
  flow.Cancel(1);
  flow.Cancel(3);
  flow.Cancel(99);
  EXPECT_EQ(flow.waiting(), 1u);
  while (flow.Step()) {
  }
  EXPECT_EQ(first->computed, heard);
  EXPECT_EQ(last->chunks, 0);
  EXPECT_TRUE(SameBits(HandOffBytes(sink->kv, 100), HandOffBytes(alone->kv, 100)));
  sink->kv.Release();
  EXPECT_EQ(m_.pools.used_blocks(), before);
}

TEST_F(PrefillFlowTest, AJobWhoseRowsAreNotReadTakesNoChunkWhileOthersDo) {
  SequenceState rows = m_.State(m_.Prompt(100, 1)), other = m_.State(m_.Prompt(90, 2));
  rows.want_logits = true;
  rows.params.prompt_logprobs = 2;
  const auto rows_alone = Alone(rows), other_alone = Alone(other);
  PrefillFlow flow(m_.model, m_.experts, 32);
  const auto held = Submit(flow, 1, rows);
  const auto free = Submit(flow, 2, other);
  held->rows_wanted = 20;
  EXPECT_TRUE(flow.Step());
  EXPECT_EQ(held->computed, 20);
  EXPECT_EQ(free->computed, 12) << "in the same chunk";
  held->rows_wanted = 0;
  while (flow.Step()) EXPECT_GT(flow.last_chunk_tokens(), 0);
  EXPECT_TRUE(free->done());
  EXPECT_EQ(held->computed, 20);
  EXPECT_EQ(flow.waiting(), 1u);
  EXPECT_FALSE(flow.ready());
  EXPECT_EQ(flow.last_chunk_tokens(), 0);
  held->rows_wanted = 1;
  EXPECT_TRUE(flow.ready());
  while (flow.Step()) {
  }
  ASSERT_TRUE(held->done());
  EXPECT_TRUE(SameBits(held->all_logits, rows_alone->all_logits));
  EXPECT_EQ(held->prompt_logprobs, rows_alone->prompt_logprobs);
  EXPECT_EQ(held->token, rows_alone->token);
  EXPECT_TRUE(SameBits(HandOffBytes(held->kv, 100), HandOffBytes(rows_alone->kv, 100)));
  EXPECT_TRUE(SameBits(HandOffBytes(free->kv, 90), HandOffBytes(other_alone->kv, 90)));
}

TEST_F(PrefillFlowTest, AJobThatIsHeldBackCanBeCancelled) {
  SequenceState rows = m_.State(m_.Prompt(100, 1));
  rows.want_logits = true;
  PrefillFlow flow(m_.model, m_.experts, 32);
  const auto held = Submit(flow, 1, rows);
  flow.Step();
  held->rows_wanted = 0;
  EXPECT_FALSE(flow.Step());
  EXPECT_GT(m_.pools.used_blocks(), 0);
  flow.Cancel(1);
  EXPECT_EQ(flow.waiting(), 0u);
  EXPECT_EQ(m_.pools.used_blocks(), 0);
}

TEST_F(PrefillFlowTest, FailingExpertsEndOnlyTheJobsOfTheirChunk) {
  const SequenceState kept = m_.State(m_.Prompt(50, 3));
  const auto alone = Alone(kept);
  const int64_t before = m_.pools.used_blocks();
  PrefillFlow flow(m_.model, m_.experts, 32);
  const auto first = Submit(flow, 1, m_.State(m_.Prompt(40, 1)), 16);
  const auto second = Submit(flow, 2, m_.State(m_.Prompt(40, 2)), 16);
  const auto third = Submit(flow, 3, kept);
  flow.Step();
  m_.experts.FailNext(Unavailable("shard 3 of lane 0 is away"));
  EXPECT_TRUE(flow.Step());
  for (const auto& sink : {first, second}) {
    EXPECT_EQ(sink->error.code(), StatusCode::kUnavailable);
    EXPECT_THAT(StatusMessage(sink->error), ::testing::HasSubstr("shard 3"));
    EXPECT_EQ(sink->computed, 16);
  }
  EXPECT_EQ(flow.waiting(), 1u);
  while (flow.Step()) {
  }
  EXPECT_TRUE(third->error.ok());
  EXPECT_EQ(third->token, alone->token);
  EXPECT_TRUE(SameBits(HandOffBytes(third->kv, 50), HandOffBytes(alone->kv, 50)));
  third->kv.Release();
  EXPECT_EQ(m_.pools.used_blocks(), before);
}

}  // namespace
}  // namespace cachalot

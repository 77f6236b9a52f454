// Jobs of one context are computed once; each gets what it would have got alone.

#include <gmock/gmock.h>

#include "common/sampling/logprobs.h"
#include "tests/prefill_worker/prefill_flow_fixture.h"

namespace cachalot {
namespace {

using testing::HandOffBytes;
using testing::PrefillFlowTest;
using testing::Recorder;
using testing::SameBits;

class PrefillFollowersTest : public PrefillFlowTest {
 protected:
  static constexpr int64_t kTokens = 150;

  /// One of several outputs of a prompt.
  SequenceState Choice(uint64_t seed) {
    SequenceState state = m_.State(m_.Prompt(kTokens, 1));
    state.params.sampling.temperature = 1;
    state.params.sampling.seed = seed;
    return state;
  }
  void ExpectAsAlone(const Recorder& sink, const SequenceState& state) {
    ASSERT_TRUE(sink.error.ok()) << sink.error;
    ASSERT_TRUE(sink.done());
    const auto alone = Alone(state);
    const auto tokens = static_cast<int64_t>(state.Context().size());
    EXPECT_EQ(sink.computed, tokens);
    EXPECT_EQ(sink.kv.tokens(), tokens);
    EXPECT_EQ(sink.token, alone->token);
    EXPECT_EQ(sink.finish, alone->finish);
    EXPECT_EQ(sink.logprobs, alone->logprobs);
    EXPECT_TRUE(SameBits(HandOffBytes(sink.kv, tokens), HandOffBytes(alone->kv, tokens)));
  }
  static void RunToEnd(PrefillFlow& flow) {
    while (flow.Step()) {
    }
  }
};

TEST_F(PrefillFollowersTest, GetTheBitsOfALoneRunForOnePrefill) {
  PrefillFlow flow(m_.model, m_.experts, 64);
  std::vector<SequenceState> states;
  std::vector<std::shared_ptr<Recorder>> sinks;
  for (uint64_t seed = 1; seed <= 6; ++seed) states.push_back(Choice(seed));
  states[2].params.sampling.temperature = 0;
  states[3].params.sampling.logprobs = 3;
  states[4].params.max_tokens = 1;
  states[5].params.sampling.repetition_penalty = 1.8f;
  const int before = m_.experts.chunks();
  for (size_t i = 0; i < 3; ++i) sinks.push_back(Submit(flow, i + 1, states[i]));
  const auto other = Submit(flow, 100, m_.State(m_.Prompt(kTokens, 2)));
  flow.Step();
  flow.Step();
  for (size_t i = 3; i < 6; ++i) sinks.push_back(Submit(flow, i + 1, states[i]));  // while it runs
  EXPECT_EQ(flow.waiting(), 2u);
  EXPECT_EQ(sinks[1]->chunks, 0);
  RunToEnd(flow);
  EXPECT_EQ(m_.experts.chunks() - before, 5) << "300 tokens in chunks of 64";
  for (size_t i = 0; i < 6; ++i) {
    SCOPED_TRACE(i);
    ExpectAsAlone(*sinks[i], states[i]);
    if (i > 0) {
      EXPECT_EQ(sinks[i]->chunks, 1);
    }
  }
  EXPECT_EQ(sinks[4]->finish, FinishReason::kLength);
  ExpectAsAlone(*other, m_.State(m_.Prompt(kTokens, 2)));
}

TEST_F(PrefillFollowersTest, EmittedTokensArePartOfTheContext) {
  PrefillFlow flow(m_.model, m_.experts, 64);
  SequenceState fresh = Choice(1), resumed = Choice(2), further = Choice(2);
  resumed.emitted = {9, 8};
  further.emitted = {9, 8};
  further.params.sampling.frequency_penalty = 1;
  const auto first = Submit(flow, 1, fresh), second = Submit(flow, 2, resumed), third = Submit(flow, 3, further);
  EXPECT_EQ(flow.waiting(), 2u);
  RunToEnd(flow);
  ExpectAsAlone(*first, fresh);
  ExpectAsAlone(*second, resumed);
  ExpectAsAlone(*third, further);
}

TEST_F(PrefillFollowersTest, TakeOverWhenTheirLeaderIsCancelled) {
  const int64_t before = m_.pools.used_blocks();
  for (const int steps : {0, 1, 2}) {
    SCOPED_TRACE(steps);
    PrefillFlow flow(m_.model, m_.experts, 64);
    const int chunks = m_.experts.chunks();
    auto first = Submit(flow, 1, Choice(1)), second = Submit(flow, 2, Choice(2)), third = Submit(flow, 3, Choice(3));
    for (int i = 0; i < steps; ++i) flow.Step();
    flow.Cancel(1);
    EXPECT_EQ(first->computed, 64 * steps);
    EXPECT_EQ(second->computed, 64 * steps) << "what is computed is not computed again";
    EXPECT_EQ(third->computed, 0);
    RunToEnd(flow);
    EXPECT_EQ(m_.experts.chunks() - chunks, 3);
    EXPECT_EQ(first->token, -1);
    ExpectAsAlone(*second, Choice(2));
    ExpectAsAlone(*third, Choice(3));
  }
  {
    PrefillFlow flow(m_.model, m_.experts, 64);
    const auto first = Submit(flow, 1, Choice(1)), second = Submit(flow, 2, Choice(2)), third = Submit(flow, 3, Choice(3));
    flow.Step();
    flow.Cancel(2);  // a follower
    flow.Cancel(1);
    RunToEnd(flow);
    EXPECT_EQ(second->chunks, 0);
    ExpectAsAlone(*third, Choice(3));
  }
  {
    PrefillFlow flow(m_.model, m_.experts, 64);
    Submit(flow, 1, Choice(1));
    Submit(flow, 2, Choice(2));
    flow.Step();
    flow.Cancel(1);
    flow.Cancel(2);
    EXPECT_EQ(flow.waiting(), 0u);
    EXPECT_FALSE(flow.Step());
  }
  EXPECT_EQ(m_.pools.used_blocks(), before);
}

TEST_F(PrefillFollowersTest, GoOnWhenTheirLeaderFailsByItsOwnFault) {
  // Nothing is left for the leader to sample: every token would end its output too early.
  SequenceState broken = Choice(1);
  broken.params.sampling.min_tokens = 5;
  for (int id = 0; id < m_.weights->config.vocab_size; ++id) broken.params.stop_token_ids.push_back(id);
  PrefillFlow flow(m_.model, m_.experts, 64);
  const auto first = Submit(flow, 1, broken), second = Submit(flow, 2, Choice(2)), third = Submit(flow, 3, broken),
             fourth = Submit(flow, 4, Choice(4));
  RunToEnd(flow);
  EXPECT_EQ(first->error.code(), StatusCode::kInternal);
  EXPECT_EQ(third->error.code(), StatusCode::kInternal);
  ExpectAsAlone(*second, Choice(2));
  ExpectAsAlone(*fourth, Choice(4));
}

TEST_F(PrefillFollowersTest, FailWithTheirLeaderWhenTheExpertsAreAway) {
  const int64_t before = m_.pools.used_blocks();
  PrefillFlow flow(m_.model, m_.experts, 64);
  const auto first = Submit(flow, 1, Choice(1)), second = Submit(flow, 2, Choice(2));
  flow.Step();
  m_.experts.FailNext(Unavailable("shard 0 is away"));
  flow.Step();
  EXPECT_EQ(first->error.code(), StatusCode::kUnavailable);
  EXPECT_EQ(second->error.code(), StatusCode::kUnavailable);
  EXPECT_EQ(flow.waiting(), 0u);
  EXPECT_EQ(m_.pools.used_blocks(), before);
}

TEST_F(PrefillFollowersTest, JobsThatWantRowsAreComputedThemselvesAndMayBeFollowed) {
  SequenceState logits = Choice(2), logprobs = Choice(3);
  logits.want_logits = true;
  logprobs.params.prompt_logprobs = 4;
  PrefillFlow flow(m_.model, m_.experts, 64);
  const auto first = Submit(flow, 1, Choice(1)), second = Submit(flow, 2, logits), third = Submit(flow, 3, logprobs);
  EXPECT_EQ(flow.waiting(), 3u);
  flow.Cancel(1);
  const auto fourth = Submit(flow, 4, Choice(4));  // follows the second
  EXPECT_EQ(flow.waiting(), 2u);
  RunToEnd(flow);
  ExpectAsAlone(*second, logits);
  ExpectAsAlone(*third, logprobs);
  ExpectAsAlone(*fourth, Choice(4));
  const auto vocab = static_cast<size_t>(m_.weights->config.vocab_size);
  ASSERT_EQ(second->all_logits.size(), kTokens * vocab);
  EXPECT_TRUE(third->all_logits.empty());
  EXPECT_TRUE(fourth->all_logits.empty());
  ASSERT_EQ(third->prompt_logprobs.size(), static_cast<size_t>(kTokens - 1));
  for (int64_t i = 0; i + 1 < kTokens; ++i)
    EXPECT_EQ(third->prompt_logprobs[i],
              LogprobsOf(std::span(second->all_logits).subspan(i * vocab, vocab), logits.prompt[i + 1], 4));
}

TEST_F(PrefillFollowersTest, DoNotWaitForTheReaderOfTheirLeader) {
  SequenceState rows = Choice(1);
  rows.want_logits = true;
  for (const int steps : {0, 1, 2}) {
    SCOPED_TRACE(steps);
    PrefillFlow flow(m_.model, m_.experts, 64);
    const auto leader = Submit(flow, 1, rows), second = Submit(flow, 2, Choice(2)),
               third = Submit(flow, 3, Choice(3));
    for (int i = 0; i < steps; ++i) flow.Step();
    leader->rows_wanted = 0;
    const int chunks = m_.experts.chunks();
    EXPECT_TRUE(flow.ready());
    RunToEnd(flow);
    EXPECT_EQ(m_.experts.chunks() - chunks, 3 - steps) << "what is computed is not computed again";
    EXPECT_EQ(leader->computed, 64 * steps);
    ExpectAsAlone(*second, Choice(2));
    ExpectAsAlone(*third, Choice(3));
    const auto late = Submit(flow, 4, Choice(4));
    RunToEnd(flow);
    ExpectAsAlone(*late, Choice(4));
    EXPECT_EQ(leader->computed, 64 * steps);
    EXPECT_EQ(flow.waiting(), 1u);
    leader->rows_wanted = 10;
    RunToEnd(flow);
    ExpectAsAlone(*leader, rows);
    EXPECT_TRUE(SameBits(leader->all_logits, Alone(rows)->all_logits));
  }
}

TEST_F(PrefillFollowersTest, WhoLeftALeaderThatIsHeldBackFindsItGone) {
  SequenceState rows = Choice(1);
  rows.want_logits = true;
  PrefillFlow flow(m_.model, m_.experts, 64);
  const auto leader = Submit(flow, 1, rows), second = Submit(flow, 2, Choice(2)),
             third = Submit(flow, 3, Choice(3));
  flow.Step();
  leader->rows_wanted = 0;
  flow.Step();
  flow.Cancel(1);
  flow.Cancel(2);
  EXPECT_EQ(flow.waiting(), 1u);
  RunToEnd(flow);
  ExpectAsAlone(*third, Choice(3));
  third->kv.Release();
  EXPECT_EQ(m_.pools.used_blocks(), 0);
}

TEST_F(PrefillFollowersTest, APrefixOfALeaderThatIsHeldBackIsNotWaitedFor) {
  PrefixStore prefixes(m_.pools.layout(), {.salt = "s"});
  PrefillFlow flow(m_.model, m_.experts, 64, &prefixes);
  SequenceState rows = m_.State(m_.Prompt(300, 1));
  rows.want_logits = true;
  const SequenceState same = m_.State(m_.Prompt(300, 1)), longer = m_.State(m_.Prompt(420, 1));
  const auto leader = Submit(flow, 1, rows), follower = Submit(flow, 2, same),
             longest = Submit(flow, 3, longer);
  for (int i = 0; i < 3; ++i) flow.Step();
  EXPECT_EQ(leader->computed, 192) << "the cache wants 256 tokens of it";
  leader->rows_wanted = 0;
  RunToEnd(flow);
  ExpectAsAlone(*follower, same);
  ExpectAsAlone(*longest, longer);
  EXPECT_EQ(longest->chunks, 1 + 4) << "256 tokens from the cache";
  EXPECT_EQ(leader->computed, 192);
  leader->rows_wanted = 50;
  RunToEnd(flow);
  ExpectAsAlone(*leader, rows);
}

TEST_F(PrefillFollowersTest, PromptLogprobsLeaveEmittedTokensOut) {
  SequenceState state = Choice(1);
  state.emitted = m_.Prompt(70, 9);
  state.params.prompt_logprobs = 0;
  PrefillFlow flow(m_.model, m_.experts, 64);
  const auto sink = Submit(flow, 1, state);
  RunToEnd(flow);
  EXPECT_EQ(sink->prompt_logprobs.size(), static_cast<size_t>(kTokens - 1));
}

}  // namespace
}  // namespace cachalot

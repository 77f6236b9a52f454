#include "common/engine/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace cachalot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kVocab = 40;
constexpr int kEos = 7;

/// A model whose logits depend on the last token and the position, so that equal histories give equal rows.
std::vector<float> RowAfter(int32_t last, int64_t position) {
  std::mt19937 bits(static_cast<uint32_t>(last * 1000 + position));
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> row(kVocab);
  for (float& logit : row) logit = normal(bits);
  row[kEos] += 2;
  return row;
}

SequenceState State() {
  SequenceState state;
  state.prompt = {3, 5, 5, 9};
  state.params.max_tokens = 60;
  state.params.sampling.seed = 11;
  return state;
}

/// All output tokens; the history is built from the state as a worker does that takes the sequence over.
std::vector<int32_t> Output(const SequenceState& state, FinishReason* reason = nullptr) {
  Sampler sampler(kVocab);
  TokenHistory history = HistoryOf(state, kVocab);
  std::vector<int32_t> output = state.emitted;
  const std::vector<int> eos = {kEos};
  for (;;) {
    const auto index = static_cast<int64_t>(output.size());
    const int32_t last = output.empty() ? state.prompt.back() : output.back();
    const auto next = NextToken(state, eos, sampler, history, RowAfter(last, index), index);
    EXPECT_TRUE(next.ok()) << next.status();
    output.push_back(next->token);
    if (reason) *reason = next->finish;
    if (next->finish != FinishReason::kNone) return output;
  }
}

TEST(Generation, ResumedAnywhereTheTokensAreTheSame) {
  std::vector<SequenceState> states(4, State());
  states[1].params.sampling.frequency_penalty = 0.7f;
  states[2].params.sampling.presence_penalty = 1.5f;
  states[2].params.sampling.min_p = 0.02f;
  states[3].params.sampling.repetition_penalty = 1.3f;
  states[3].params.sampling.logit_bias = {{12, 3.f}, {kEos, -2.f}};
  std::vector<std::vector<int32_t>> outputs;
  for (SequenceState& state : states) {
    state.params.ignore_eos = true;
    outputs.push_back(Output(state));
    ASSERT_EQ(outputs.back().size(), 60u);
    for (size_t have = 0; have < 60; have += 7) {
      SequenceState resumed = state;
      resumed.emitted.assign(outputs.back().begin(), outputs.back().begin() + static_cast<ptrdiff_t>(have));
      EXPECT_EQ(Output(resumed), outputs.back()) << have;
    }
  }
  for (size_t i = 1; i < outputs.size(); ++i)
    EXPECT_NE(outputs[i], outputs[0]) << "the params changed nothing";
}

TEST(Generation, MinTokensHoldsOffEndTokensAndStopIds) {
  SequenceState state = State();
  state.params.stop_token_ids = {2, 4, 6, 8, 10, 12, 14, 16};
  const size_t early = Output(state).size();
  ASSERT_LT(early, 20u);
  state.params.sampling.min_tokens = 30;
  FinishReason reason;
  const auto output = Output(state, &reason);
  ASSERT_GT(output.size(), 30u);
  EXPECT_EQ(reason, FinishReason::kStop);
  for (size_t i = 0; i < 30; ++i) {
    EXPECT_NE(output[i], kEos);
    EXPECT_FALSE(output[i] % 2 == 0 && output[i] >= 2 && output[i] <= 16) << output[i];
  }
  // An end token that ends nothing is a token like others.
  state.params.stop_token_ids.clear();
  state.params.ignore_eos = true;
  const auto ignoring = Output(state);
  state.params.sampling.min_tokens = 0;
  EXPECT_EQ(ignoring, Output(state));
}

TEST(Generation, LogprobsOnlyWhenWanted) {
  SequenceState state = State();
  Sampler sampler(kVocab);
  const auto row = RowAfter(1, 1);
  TokenHistory none;
  EXPECT_FALSE(NextToken(state, std::vector<int>(), sampler, none, row, 0)->logprobs.has_value());
  state.params.sampling.logprobs = 2;
  state.params.sampling.temperature = 3;
  state.params.sampling.logit_bias = {{0, 100.f}};
  const auto biased = NextToken(state, std::vector<int>(), sampler, none, row, 0);
  EXPECT_EQ(biased->token, 0);
  EXPECT_EQ(*biased->logprobs, LogprobsOf(row, 0, 2)) << "of the raw distribution";
  EXPECT_EQ(biased->logprobs->top.size(), 2u);
}

TEST(Generation, PromptLogprobsStopAtThePromptsEnd) {
  SequenceState state = State();
  state.emitted = {1, 2};
  state.params.prompt_logprobs = 1;
  std::vector<float> rows;
  for (int i = 0; i < 6; ++i) {
    const auto row = RowAfter(i, 2);
    rows.insert(rows.end(), row.begin(), row.end());
  }
  const auto all = PromptLogprobs(state, 0, 6, rows, kVocab);
  ASSERT_EQ(all.size(), 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(all[i], LogprobsOf(RowAfter(i, 2), state.prompt[i + 1], 1));
  const auto later = PromptLogprobs(state, 2, 6, std::span(rows).subspan(2 * kVocab), kVocab);
  EXPECT_THAT(later, ElementsAre(all[2]));
  EXPECT_TRUE(PromptLogprobs(state, 3, 6, std::span(rows).subspan(3 * kVocab), kVocab).empty());
}

TEST(Generation, ValidationNamesFieldWantedAndGot) {
  const auto refusal = [](auto change) {
    GenerationParams params = State().params;
    EXPECT_TRUE(ValidateGenerationParams(params, kVocab).ok());
    change(params);
    const Status status = ValidateGenerationParams(params, kVocab);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return StatusMessage(status);
  };
  EXPECT_THAT(refusal([](auto& p) {
                p.sampling.logit_bias = {{kVocab, 1.f}};
              }),
              HasSubstr("logit_bias: wanted a token id in [0, 40), got 40"));
  EXPECT_THAT(refusal([](auto& p) { p.prompt_logprobs = 21; }),
              HasSubstr("prompt_logprobs: wanted 0 to 20, got 21"));
  EXPECT_THAT(refusal([](auto& p) { p.sampling.min_tokens = 61; }),
              HasSubstr("min_tokens: wanted at most max_tokens, which is 60, got 61"));
  EXPECT_THAT(refusal([](auto& p) { p.sampling.min_p = 2; }),
              HasSubstr("min_p: wanted a number in [0, 1], got 2"));
}

}  // namespace
}  // namespace cachalot

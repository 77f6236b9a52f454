// Bias, min tokens, penalties and min-p: known answers, frequencies, and what they depend on.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "common/sampling/sampler.h"

namespace cachalot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr double kChi99_9[] = {0,     10.83, 13.82, 16.27,
                               18.47, 20.52, 22.46, 24.32};  // upper 0.1 %, by degrees of freedom

TokenHistory History(std::vector<int32_t> prompt, std::vector<int32_t> output, int vocab = 100) {
  return TokenHistory(prompt, output, 100, vocab);
}

std::vector<float> LogsOf(const std::vector<double>& p) {
  std::vector<float> logits;
  for (double x : p) logits.push_back(static_cast<float>(std::log(x)));
  return logits;
}

int32_t Greedy(const std::vector<float>& logits, SamplingParams params, const SampleContext& context = {},
               uint64_t index = 0) {
  params.temperature = 0;
  Sampler sampler(static_cast<int>(logits.size()));
  const auto token = sampler.Sample(logits, params, index, context);
  EXPECT_TRUE(token.ok()) << token.status();
  return token.ok() ? *token : -1;
}

/// The statistic and, by its degrees of freedom, the limit that a right sampler exceeds once in a thousand
/// times.
void ExpectFrequencies(const std::vector<float>& logits, const SamplingParams& params,
                       const SampleContext& context, std::vector<double> weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  const int draws = 50000;
  Sampler sampler(static_cast<int>(logits.size()));
  std::map<int32_t, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[*sampler.Sample(logits, params, i, context)];
  double chi = 0;
  int degrees = -1;
  for (size_t id = 0; id < weights.size(); ++id) {
    const double expected = draws * weights[id] / sum;
    const double got = counts[static_cast<int32_t>(id)];
    if (expected == 0) {
      EXPECT_EQ(got, 0) << id;
      continue;
    }
    ++degrees;
    chi += (got - expected) * (got - expected) / expected;
  }
  EXPECT_LT(chi, kChi99_9[degrees]);
}

TEST(TokenHistory, CountsPromptAndOutput) {
  const TokenHistory history = History({5, 9, 5}, {9, 2, 9});
  std::map<int32_t, int32_t> counts;
  for (const auto& entry : history.entries()) counts[entry.id] = entry.in_output;
  EXPECT_EQ(counts, (std::map<int32_t, int32_t>{{5, 0}, {9, 2}, {2, 1}}));
  TokenHistory none;
  none.Add(3);
  EXPECT_FALSE(none.counts());
  EXPECT_TRUE(none.entries().empty());
}

TEST(TokenHistory, AddingEqualsRebuilding) {
  std::vector<int32_t> prompt, output;
  for (int i = 0; i < 300; ++i) prompt.push_back(i * i * 31 % 997);
  TokenHistory grown(prompt, {}, 2000, 1000);
  for (int i = 0; i < 1700; ++i) {
    output.push_back(i * i % 1000 * i % 1000);
    grown.Add(output.back());
  }
  const TokenHistory rebuilt(prompt, output, 2000, 1000);
  ASSERT_EQ(grown.entries().size(), rebuilt.entries().size());
  for (size_t i = 0; i < grown.entries().size(); ++i) {
    EXPECT_EQ(grown.entries()[i].id, rebuilt.entries()[i].id);
    EXPECT_EQ(grown.entries()[i].in_output, rebuilt.entries()[i].in_output);
  }
}

TEST(Bias, MovesTheBest) {
  const std::vector<float> logits = {1, 2, 3};
  EXPECT_EQ(Greedy(logits, {.logit_bias = {{0, 2.5f}}}), 0);
  EXPECT_EQ(Greedy(logits, {.logit_bias = {{0, 2.f}}}), 0) << "a tie goes to the lower id";
  EXPECT_EQ(Greedy(logits, {.logit_bias = {{2, -1.5f}}}), 1);
  EXPECT_EQ(Greedy(logits, {.logit_bias = {{2, -100.f}, {1, -100.f}}}), 0);
  EXPECT_EQ(Greedy(logits, {.top_k = 1, .logit_bias = {{0, 2.5f}}}), 0);
}

TEST(MinTokens, MasksUntilItsIndex) {
  const std::vector<float> logits = {1, 2, 3, 4};
  const std::vector<int32_t> ends = {3, 77}, stops = {2};
  const SampleContext context{nullptr, ends, stops};
  const SamplingParams params{.logit_bias = {{3, 100.f}}, .min_tokens = 2};
  EXPECT_EQ(Greedy(logits, params, context, 0), 1);
  EXPECT_EQ(Greedy(logits, params, context, 1), 1);
  EXPECT_EQ(Greedy(logits, params, context, 2), 3);
  const std::vector<int32_t> all = {0, 1, 2, 3};
  Sampler sampler(4);
  EXPECT_EQ(sampler.Sample(logits, params, 0, {nullptr, all, {}}).status().code(), StatusCode::kInternal);
}

TEST(Penalties, KnownAnswers) {
  // Output has 0 twice and 1 once; the prompt has 2 (and 0).
  const TokenHistory history = History({2, 0}, {0, 0, 1});
  const SampleContext context{&history, {}, {}};
  // Frequency 1: 5 - 2, 4.5 - 1, 3.4: token 1.
  EXPECT_EQ(Greedy({5.f, 4.5f, 3.4f}, {.frequency_penalty = 1}, context), 1);
  EXPECT_EQ(Greedy({5.f, 4.5f, 3.6f}, {.frequency_penalty = 1}, context), 2);
  // Presence 1: 5 - 1, 4.5 - 1, 3.9 and 4.1 untouched: the prompt does not count.
  EXPECT_EQ(Greedy({5.f, 4.5f, 3.9f}, {.presence_penalty = 1}, context), 0);
  EXPECT_EQ(Greedy({5.f, 4.5f, 4.1f}, {.presence_penalty = 1}, context), 2);
  // Repetition 2: 5 / 2, 4.5 / 2, 6 / 2, and 2.9 of token 3, which nothing has.
  EXPECT_EQ(Greedy({5.f, 4.5f, 6.f, 2.9f}, {.repetition_penalty = 2}, context), 2);
  EXPECT_EQ(Greedy({5.f, 4.5f, 5.f, 2.9f}, {.repetition_penalty = 2}, context), 3);
  // Logits below 0 are multiplied: -1 * 2 against -1.9.
  EXPECT_EQ(Greedy({-1.f, -3.f, -3.f, -1.9f}, {.repetition_penalty = 2}, context), 3);
  // A reward.
  EXPECT_EQ(Greedy({3.f, 4.5f, 1.f}, {.frequency_penalty = -2}, context), 0);
  // The order: (4 + 4) / 2 - 2 * 0.5 - 0.25 = 2.75 of token 0.
  const SamplingParams both{.frequency_penalty = 0.5f,
                            .presence_penalty = 0.25f,
                            .repetition_penalty = 2,
                            .logit_bias = {{0, 4.f}}};
  EXPECT_EQ(Greedy({4.f, 0.f, 0.f, 2.74f}, both, context), 0);
  EXPECT_EQ(Greedy({4.f, 0.f, 0.f, 2.76f}, both, context), 3);
  // However near to 0 the divisor is, there is a token.
  EXPECT_EQ(Greedy({1.f, 2.f, -1.f}, {.repetition_penalty = 1e-45f}, context), 0);
}

TEST(MinP, KeepsWhatIsLikelyEnough) {
  const std::vector<float> logits = LogsOf({0.1, 0.4, 0.2, 0.25, 0.05});
  const auto support = [&](SamplingParams params) {
    Sampler sampler(5);
    std::map<int32_t, int> counts;
    for (int i = 0; i < 4000; ++i) ++counts[*sampler.Sample(logits, params, i)];
    std::vector<int32_t> ids;
    for (const auto& [id, count] : counts) ids.push_back(id);
    return ids;
  };
  EXPECT_THAT(support({.min_p = 1}), ElementsAre(1));
  EXPECT_THAT(support({.min_p = 0.63f}), ElementsAre(1));
  EXPECT_THAT(support({.min_p = 0.6f}), ElementsAre(1, 3));
  EXPECT_THAT(support({.min_p = 0.49f}), ElementsAre(1, 2, 3));
  EXPECT_THAT(support({.min_p = 0.24f}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(support({.min_p = 0.1f}), ElementsAre(0, 1, 2, 3, 4));
  // After temperature: at 2 the ratios are square roots.
  EXPECT_THAT(support({.temperature = 2, .min_p = 0.49f}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(support({.top_k = 2, .min_p = 0.24f}), ElementsAre(1, 3));
  // Top-p of what min-p leaves (0.4, 0.25, 0.2 of 0.85): 0.76 needs two.
  EXPECT_THAT(support({.top_p = 0.76f, .min_p = 0.49f}), ElementsAre(1, 3));
}

TEST(Frequencies, FollowTheAdjustedDistribution) {
  const std::vector<double> p = {0.05, 0.3, 0.15, 0.1, 0.02, 0.08, 0.2, 0.1};
  const std::vector<float> logits = LogsOf(p);
  ExpectFrequencies(logits, {.seed = 1, .min_p = 0.3f}, {}, {0, 0.3, 0.15, 0.1, 0, 0, 0.2, 0.1});

  std::vector<double> biased = p;
  biased[4] *= std::exp(2.0);
  biased[1] *= std::exp(-1.5);
  ExpectFrequencies(logits, {.seed = 2, .logit_bias = {{4, 2.f}, {1, -1.5f}}}, {}, biased);

  const TokenHistory history = History({1, 7}, {1, 1, 6});
  const SampleContext context{&history, {}, {}};
  std::vector<double> frequent = p;
  frequent[1] *= std::exp(-2 * 0.8);
  frequent[6] *= std::exp(-0.8);
  ExpectFrequencies(logits, {.seed = 3, .frequency_penalty = 0.8f}, context, frequent);

  std::vector<double> present = p;
  present[1] *= std::exp(-1.2);
  present[6] *= std::exp(-1.2);
  ExpectFrequencies(logits, {.seed = 4, .presence_penalty = 1.2f}, context, present);

  std::vector<double> repeated = p;  // these logits are below 0: multiplied, a power of the probability
  for (int id : {1, 6, 7}) repeated[id] = std::pow(p[id], 1.5);
  ExpectFrequencies(logits, {.seed = 5, .repetition_penalty = 1.5f}, context, repeated);

  const std::vector<int32_t> ends = {1};
  std::vector<double> masked = p;
  masked[1] = 0;
  ExpectFrequencies(logits, {.seed = 6, .min_tokens = 1 << 20}, {nullptr, ends, {}}, masked);
}

TEST(Validate, NamesFieldWantedAndGot) {
  const auto refusal = [](const SamplingParams& params) {
    const Status status = ValidateSamplingParams(params);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return StatusMessage(status);
  };
  EXPECT_THAT(refusal({.min_p = -0.1f}), HasSubstr("min_p: wanted a number in [0, 1], got -0.1"));
  EXPECT_THAT(refusal({.min_p = NAN}), HasSubstr("min_p"));
  EXPECT_THAT(refusal({.frequency_penalty = 2.1f}),
              HasSubstr("frequency_penalty: wanted a number in [-2, 2], got 2.1"));
  EXPECT_THAT(refusal({.presence_penalty = -3}),
              HasSubstr("presence_penalty: wanted a number in [-2, 2], got -3"));
  EXPECT_THAT(refusal({.repetition_penalty = 0}),
              HasSubstr("repetition_penalty: wanted a finite number > 0, got 0"));
  EXPECT_THAT(refusal({.logit_bias = {{-1, 0.f}}}), HasSubstr("logit_bias: wanted a token id >= 0, got -1"));
  EXPECT_THAT(refusal({.logit_bias = {{4, 101.f}}}),
              HasSubstr("logit_bias of token 4: wanted a number in [-100, 100], got 101"));
  EXPECT_THAT(refusal({.logit_bias = {{4, 1.f}, {3, 1.f}, {4, 2.f}}}),
              HasSubstr("logit_bias of token 4: wanted one, got two"));
  EXPECT_THAT(refusal({.min_tokens = -1}), HasSubstr("min_tokens: wanted a number >= 0, got -1"));
  EXPECT_THAT(refusal({.logprobs = 21}), HasSubstr("logprobs: wanted 0 to 20, got 21"));
}

}  // namespace
}  // namespace cachalot

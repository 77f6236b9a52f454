#include "common/sampling/logprobs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace cachalot {
namespace {

std::vector<float> Row(int count, float spread, uint32_t seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(bits);
  return logits;
}

/// Log-softmax in long double.
std::vector<long double> Reference(const std::vector<float>& logits) {
  const long double top = *std::max_element(logits.begin(), logits.end());
  long double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<long double>(logit) - top);
  std::vector<long double> result;
  for (float logit : logits) result.push_back(logit - top - std::log(sum));
  return result;
}

TEST(Logprobs, EqualALogSoftmaxInHigherPrecision) {
  for (const int vocab : {1, 2, 40, 1000, 129280})
    for (const float spread : {0.f, 0.1f, 3.f, 30.f}) {
      auto logits = Row(vocab, spread, 5);
      if (vocab > 2) logits[1] = -INFINITY;
      const auto want = Reference(logits);
      for (const int32_t token : {0, vocab / 2, vocab - 1}) {
        const float got = LogprobsOf(logits, token, 0).chosen;
        if (std::isinf(want[token])) {
          EXPECT_EQ(got, -INFINITY);
        } else {
          EXPECT_NEAR(got, want[token], 1e-12 + std::abs(static_cast<double>(want[token])) * 0x1p-24);
        }
      }
    }
}

TEST(Logprobs, TheTopIsAStableSorts) {
  for (const float spread : {0.f, 1.f, 10.f}) {
    auto logits = Row(500, spread, 9);
    for (size_t i = 0; i < logits.size(); i += 3) logits[i] = std::round(logits[i]);  // ties
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    for (int count : {0, 1, 5, 20}) {
      const TokenLogprobs result = LogprobsOf(logits, 250, count);
      ASSERT_EQ(result.top.size(), static_cast<size_t>(count));
      for (int i = 0; i < count; ++i) {
        EXPECT_EQ(result.top[i].id, order[i]);
        EXPECT_EQ(result.top[i].logprob, LogprobsOf(logits, order[i], 0).chosen);
      }
    }
  }
  EXPECT_EQ(LogprobsOf(std::vector<float>{1, 2, 3}, 0, 20).top.size(), 3u) << "no more than there are";
}

TEST(Logprobs, KnownAnswers) {
  const TokenLogprobs even = LogprobsOf(std::vector<float>(8, -5.f), 3, 2);
  EXPECT_FLOAT_EQ(even.chosen, -2.0794415f);  // log(1/8)
  EXPECT_EQ(even.top[0], (TokenLogprob{0, even.chosen}));
  EXPECT_EQ(even.top[1], (TokenLogprob{1, even.chosen}));
  EXPECT_EQ(LogprobsOf(std::vector<float>{88.f, -INFINITY}, 0, 0).chosen, 0.f);
}

}  // namespace
}  // namespace cachalot

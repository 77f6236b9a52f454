#include "common/sampling/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <map>
#include <new>
#include <numeric>
#include <random>
#include <set>

#include "common/sampling/philox.h"

namespace {
std::atomic<int64_t> allocations{0};
}

// Counts every allocation of the process: Sample must make none. Not inlined: GCC would take malloc and
// delete, or new and free, for mismatched pairs.
[[gnu::noinline]] void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t size, const std::nothrow_t&) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(size);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace cachalot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

int32_t SampleOrDie(Sampler& sampler, std::span<const float> logits, const SamplingParams& params,
                    uint64_t index) {
  const StatusOr<int32_t> token = sampler.Sample(logits, params, index);
  EXPECT_TRUE(token.ok()) << StatusMessage(token.status());
  return token.ok() ? *token : -1;
}

/// What the header promises, by a full sort.
int32_t Naive(std::span<const float> logits, const SamplingParams& params, uint64_t index) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  if (params.top_k > 0) order.resize(std::min<size_t>(order.size(), params.top_k));
  std::vector<double> weight(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    weight[i] = std::exp((static_cast<double>(logits[order[i]]) - logits[order[0]]) / params.temperature);
  }
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  double nucleus = 0;
  size_t kept = 0;
  while (kept < order.size() && nucleus < params.top_p * total) nucleus += weight[kept++];
  double target = UniformAt(params.seed, index) * nucleus, sum = 0;
  for (size_t i = 0; i < kept; ++i) {
    if ((sum += weight[i]) > target) return order[i];
  }
  return order[kept - 1];
}

std::vector<float> RandomLogits(int count, float spread, uint32_t seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(bits);
  return logits;
}

TEST(PhiloxTest, KnownAnswers) {  // Random123, kat_vectors
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}), ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  const uint32_t ones = 0xffffffff;
  EXPECT_THAT(Philox4x32({ones, ones, ones, ones}, {ones, ones}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(UniformTest, DependsOnSeedAndIndexAndStaysBelowOne) {
  EXPECT_EQ(UniformAt(0, 0), static_cast<double>(0xe169c58d6627e8d5 >> 11) * 0x1p-53);
  std::set<double> seen;
  for (uint64_t seed : {0ull, 1ull, 1ull << 32, ~0ull}) {
    for (uint64_t index : {0ull, 1ull, 1ull << 32, ~0ull}) {
      const double u = UniformAt(seed, index);
      EXPECT_TRUE(u >= 0 && u < 1);
      seen.insert(u);
    }
  }
  EXPECT_EQ(seen.size(), 16u);
}

TEST(ValidateTest, NamesFieldWantedAndGot) {
  EXPECT_TRUE(ValidateSamplingParams({}).ok());
  EXPECT_TRUE(ValidateSamplingParams({.temperature = 0, .top_k = 5, .top_p = 0.1f}).ok());
  const auto refusal = [](const SamplingParams& params) {
    const Status status = ValidateSamplingParams(params);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return StatusMessage(status);
  };
  EXPECT_THAT(refusal({.temperature = -1}), HasSubstr("temperature: wanted a finite number >= 0, got -1"));
  EXPECT_THAT(refusal({.temperature = NAN}), HasSubstr("temperature"));
  EXPECT_THAT(refusal({.temperature = INFINITY}), HasSubstr("temperature"));
  EXPECT_THAT(refusal({.top_k = -1}), HasSubstr("top_k"));
  EXPECT_THAT(refusal({.top_p = 0}), HasSubstr("top_p"));
  EXPECT_THAT(refusal({.top_p = 1.5f}), HasSubstr("top_p"));
  EXPECT_THAT(refusal({.top_p = NAN}), HasSubstr("top_p"));
}

TEST(SamplerTest, GreedyTakesTheLowestOfEqualIds) {
  Sampler sampler(8);
  const std::vector<float> logits = {-1, 3, 2, 3, -INFINITY, 3, 0, 1};
  for (uint64_t index = 0; index < 4; ++index) {
    EXPECT_EQ(SampleOrDie(sampler, logits, {.temperature = 0, .seed = index}, index), 1);
    EXPECT_EQ(SampleOrDie(sampler, logits, {.temperature = 2, .top_k = 1}, index), 1);
  }
  EXPECT_EQ(SampleOrDie(sampler, std::vector<float>{-3}, {.temperature = 0}, 0), 0);
}

TEST(SamplerTest, BrokenRowsAreErrorsNotTokens) {
  Sampler sampler(4);
  for (float temperature : {0.f, 1.f}) {
    for (const std::vector<float>& logits : {std::vector<float>{0, NAN, 1},
                                             {NAN, 2, 3, 4},
                                             {1, 2, NAN},
                                             {0, INFINITY},
                                             {-INFINITY, -INFINITY},
                                             std::vector<float>{}}) {
      const auto token = sampler.Sample(logits, {.temperature = temperature}, 0);
      EXPECT_EQ(token.status().code(), StatusCode::kInternal);
    }
  }
}

TEST(SamplerTest, EqualsAFullSortOnEveryKindOfRow) {
  const int vocab = 1000;
  Sampler sampler(vocab);
  for (float spread : {0.f, 0.01f, 1.f, 10.f, 100.f}) {
    std::vector<float> logits = RandomLogits(vocab, spread, 7);
    for (int i = 0; i < vocab; i += 5) logits[i] = std::round(logits[i]);  // ties
    for (int i = 3; i < vocab; i += 17) logits[i] = -INFINITY;
    for (float temperature : {0.1f, 1.f, 3.f}) {
      for (int top_k : {0, 2, 40, 999, 5000}) {
        for (float top_p : {0.05f, 0.5f, 0.95f, 1.f}) {
          for (uint64_t index = 0; index < 20; ++index) {
            const SamplingParams params{
                .temperature = temperature, .top_k = top_k, .top_p = top_p, .seed = 11};
            ASSERT_EQ(SampleOrDie(sampler, logits, params, index), Naive(logits, params, index))
                << "spread " << spread << " temperature " << temperature << " k " << top_k << " p " << top_p;
          }
        }
      }
    }
  }
}

std::map<int32_t, int> Histogram(std::span<const float> logits, SamplingParams params, int draws) {
  Sampler sampler(static_cast<int>(logits.size()));
  std::map<int32_t, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[SampleOrDie(sampler, logits, params, i)];
  return counts;
}

std::vector<int32_t> Support(std::span<const float> logits, SamplingParams params) {
  std::vector<int32_t> ids;
  for (const auto& [id, count] : Histogram(logits, params, 4000)) ids.push_back(id);
  return ids;
}

TEST(SamplerTest, SupportsOfTopKAndTopP) {
  // Probabilities 0.1, 0.4, 0.2, 0.2, 0.1 of tokens 0 to 4.
  std::vector<float> logits;
  for (float p : {0.1f, 0.4f, 0.2f, 0.2f, 0.1f}) logits.push_back(std::log(p));
  EXPECT_THAT(Support(logits, {}), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(Support(logits, {.top_k = 2}), ElementsAre(1, 2));  // the tie of 2 and 3 goes to the lower id
  EXPECT_THAT(Support(logits, {.top_k = 4}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Support(logits, {.top_p = 0.05f}), ElementsAre(1));
  EXPECT_THAT(Support(logits, {.top_p = 0.39f}), ElementsAre(1));
  EXPECT_THAT(Support(logits, {.top_p = 0.41f}), ElementsAre(1, 2));
  EXPECT_THAT(Support(logits, {.top_p = 0.61f}), ElementsAre(1, 2, 3));
  EXPECT_THAT(Support(logits, {.top_p = 0.81f}), ElementsAre(0, 1, 2, 3));
  // Of the three that top-k leaves (1, 2, 3 at 0.5, 0.25, 0.25), top-p 0.6 keeps two.
  EXPECT_THAT(Support(logits, {.top_k = 3, .top_p = 0.6f}), ElementsAre(1, 2));
  EXPECT_THAT(Support(logits, {.temperature = 0.01f}), ElementsAre(1));
}

double ChiSquare(std::span<const float> logits, SamplingParams params, std::span<const double> probability) {
  const int draws = 50000;
  const auto counts = Histogram(logits, params, draws);
  double chi = 0;
  for (size_t id = 0; id < probability.size(); ++id) {
    const double expected = draws * probability[id];
    const auto at = counts.find(static_cast<int32_t>(id));
    const double got = at == counts.end() ? 0 : at->second;
    if (expected == 0) {
      EXPECT_EQ(got, 0);
    } else {
      chi += (got - expected) * (got - expected) / expected;
    }
  }
  return chi;
}

TEST(SamplerTest, TokensAtTheEdgeOfAnyWeightAreHarmless) {
  // Around -40 ln 2 a weight rounds to 0 or to 1 in 2^39; whatever it does, an index must stay inside its
  // table.
  std::vector<float> logits = {0};
  for (float x = -27.7258f; x > -27.726f; x = std::nextafter(x, -100.f)) logits.push_back(x);
  EXPECT_THAT(Support(logits, {}), ElementsAre(0));
  EXPECT_THAT(Support(logits, {.temperature = 1e-45f}), ElementsAre(0));
  EXPECT_THAT(Support(logits, {.top_k = 3}), ElementsAre(0));
}

TEST(SamplerTest, FrequenciesFollowTheDistribution) {
  const std::vector<double> p = {0.05, 0.3, 0.15, 0.1, 0.02, 0.08, 0.2, 0.1};
  std::vector<float> logits;
  for (double x : p) logits.push_back(static_cast<float>(std::log(x) + 3));
  // Upper 0.1 % points of chi-square: 24.3 at 7 degrees of freedom, 13.8 at 2.
  for (uint64_t seed : {1ull, 2ull, 0xdeadbeefull << 20})
    EXPECT_LT(ChiSquare(logits, {.seed = seed}, p), 24.3);

  std::vector<double> squared = p;  // temperature 1/2
  double sum = 0;
  for (double& x : squared) sum += x *= x;
  for (double& x : squared) x /= sum;
  EXPECT_LT(ChiSquare(logits, {.temperature = 0.5f, .seed = 3}, squared), 24.3);

  const std::vector<double> top3 = {0, 0.3 / 0.65, 0.15 / 0.65, 0, 0, 0, 0.2 / 0.65, 0};
  EXPECT_LT(ChiSquare(logits, {.top_k = 3, .seed = 4}, top3), 13.8);
  EXPECT_LT(ChiSquare(logits, {.top_p = 0.6f, .seed = 5}, top3), 13.8);
}

TEST(SamplerTest, NothingButTheArgumentsDecides) {
  const std::vector<float> a = RandomLogits(5000, 2, 1), b = RandomLogits(300, 5, 2);
  const SamplingParams params{.temperature = 0.8f, .top_k = 200, .top_p = 0.9f, .seed = 99};
  Sampler fresh(5000), used(6000);
  std::vector<int32_t> first, second;
  for (uint64_t index = 0; index < 50; ++index) first.push_back(SampleOrDie(fresh, a, params, index));
  for (uint64_t index = 50; index-- > 0;) {
    SampleOrDie(used, b, {.top_k = 7, .seed = index}, 3);
    EXPECT_FALSE(used.Sample(std::vector<float>{NAN}, params, index).ok());
    second.insert(second.begin(), SampleOrDie(used, a, params, index));
    SampleOrDie(used, a, {.temperature = 3}, index);
  }
  EXPECT_EQ(first, second);
  EXPECT_GT(std::set<int32_t>(first.begin(), first.end()).size(), 10u);
}

TEST(SamplerTest, DoesNotAllocate) {
  const std::vector<float> logits = RandomLogits(20000, 3, 5);
  Sampler sampler(20000);
  TokenHistory history(std::vector<int32_t>{1, 2, 3}, {}, 500, 20000);
  const SampleContext context{&history, {}, {}};
  const SamplingParams penalties{
      .min_p = 0.01f, .frequency_penalty = 1, .repetition_penalty = 1.1f, .logit_bias = {{7, 1.f}}};
  int64_t sum = *sampler.Sample(logits, penalties, 0, context);  // warms up
  const int64_t before = allocations.load();
  for (uint64_t index = 0; index < 20; ++index) {
    sum += *sampler.Sample(logits, {.temperature = 0}, index);
    sum += *sampler.Sample(logits, {}, index);
    sum += *sampler.Sample(logits, {.top_k = 50, .top_p = 0.9f}, index);
    sum += *sampler.Sample(logits, {.top_p = 0.9f}, index);
    for (int i = 0; i < 20; ++i) history.Add(*sampler.Sample(logits, penalties, index * 20 + i, context));
  }
  EXPECT_EQ(allocations.load() - before, 0) << sum;
}

TEST(SamplerTest, PrintsItsSpeed) {
  const int vocab = 129280, rounds = 20;
  Sampler sampler(vocab);
  const auto time = [&](const char* what, float spread, const SamplingParams& params) {
    const std::vector<float> logits = RandomLogits(vocab, spread, 3);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < rounds; ++i) SampleOrDie(sampler, logits, params, i);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    std::printf("%-32s %.2f ms a row of %d\n", what, took.count() / rounds, vocab);
  };
  time("greedy", 3, {.temperature = 0});
  time("temperature 1, flat", 0.1f, {});
  time("temperature 1, usual", 3, {});
  time("top-k 50, top-p 0.95", 3, {.top_k = 50, .top_p = 0.95f});
  time("top-p 0.95", 3, {.top_p = 0.95f});
  time("min-p 0.05, a bias", 3, {.min_p = 0.05f, .logit_bias = {{3, 1.f}}});
}

}  // namespace
}  // namespace cachalot

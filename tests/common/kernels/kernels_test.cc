// `cpu` against `ref`: tolerances from norms (the error of an n-term fp32 sum is bounded by n eps |a||b|), then the
// invariances that the rest of the system relies on, bit for bit.

#include "common/kernels/kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "common/kernels/ref/dequantise.h"

#include "hwy/targets.h"

namespace cachalot::kernels {
namespace {

constexpr float kEps = std::numeric_limits<float>::epsilon();

std::vector<float> Random(size_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

struct StoredMatrix {
  std::vector<uint8_t> bytes, scales;
  MatrixView view;
};

StoredMatrix RandomMatrix(DType dtype, int64_t rows, int64_t cols, uint32_t seed) {
  StoredMatrix m;
  std::mt19937 rng(seed);
  m.view = {dtype, nullptr, rows, cols, {}};
  m.bytes.resize(rows * DTypeBytes(dtype, cols));
  if (dtype == DType::kF32) {
    const auto x = Random(rows * cols, seed);
    std::memcpy(m.bytes.data(), x.data(), m.bytes.size());
  } else if (dtype == DType::kBF16) {
    const auto x = Random(rows * cols, seed);
    for (int64_t i = 0; i < rows * cols; ++i) std::memcpy(&m.bytes[i * 2], reinterpret_cast<const char*>(&x[i]) + 2, 2);
  } else {
    for (auto& b : m.bytes) {
      do b = static_cast<uint8_t>(rng()); while (dtype == DType::kF8E4M3 && (b & 127) == 127);
    }
    m.view.scale.block_rows = dtype == DType::kFP4 ? 1 : 128;
    m.view.scale.block_cols = dtype == DType::kFP4 ? 32 : 128;
    const int64_t sr = (rows + m.view.scale.block_rows - 1) / m.view.scale.block_rows;
    const int64_t sc = (cols + m.view.scale.block_cols - 1) / m.view.scale.block_cols;
    m.scales.resize(sr * sc);
    for (auto& s : m.scales) s = static_cast<uint8_t>(118 + rng() % 8);
    m.view.scale.data = m.scales.data();
  }
  m.view.data = m.bytes.data();
  return m;
}

std::vector<float> RunLinear(const KernelTable& k, const MatrixView& w, const float* x, int64_t tokens, int threads) {
  ThreadPool pool(threads);
  std::vector<float> y(tokens * w.rows);
  k.linear({x, w.cols, w, y.data(), w.rows, tokens}, pool);
  return y;
}

class LinearFormats : public testing::TestWithParam<DType> {};

TEST_P(LinearFormats, CpuAgreesWithRefWithinTheRoundingOfTheSum) {
  if (!CpuKernels()) GTEST_SKIP() << "no AVX2";
  for (auto [rows, cols] : {std::pair{7, 160}, {64, 256}, {130, 34}, {1, 16}, {5, 2}, {259, 300}}) {
    const auto m = RandomMatrix(GetParam(), rows, cols, rows + cols);
    const auto x = Random(6 * cols, 3);
    const auto want = RunLinear(RefKernels(), m.view, x.data(), 6, 1);
    const auto got = RunLinear(*CpuKernels(), m.view, x.data(), 6, 1);
    std::vector<float> row(cols);
    for (int n = 0; n < rows; ++n) {
      DequantiseRow(m.view, n, 0, cols, row.data());
      for (int t = 0; t < 6; ++t) {
        double magnitude = 0;
        for (int i = 0; i < cols; ++i) magnitude += std::fabs(row[i] * x[t * cols + i]);
        ASSERT_NEAR(got[t * rows + n], want[t * rows + n], (cols / 16 + 6) * kEps * magnitude)
            << rows << "x" << cols << " output " << n << " token " << t;
      }
    }
  }
}

TEST_P(LinearFormats, ARowDoesNotDependOnItsBatchOrTheThreads) {
  for (const KernelTable* k : {&RefKernels(), CpuKernels()}) {
    if (!k) continue;
    const int rows = 1030, cols = 288;
    const auto m = RandomMatrix(GetParam(), rows, cols, 9);
    const auto x = Random(16 * cols, 4);
    const auto whole = RunLinear(*k, m.view, x.data(), 16, 1);
    EXPECT_EQ(whole, RunLinear(*k, m.view, x.data(), 16, 2)) << k->name;
    EXPECT_EQ(whole, RunLinear(*k, m.view, x.data(), 16, 3)) << k->name;
    for (int first = 0; first < 16; ++first)
      for (int count : {1, 3, 5}) {
        if (first + count > 16) continue;
        const auto part = RunLinear(*k, m.view, x.data() + first * cols, count, 1);
        ASSERT_EQ(0, std::memcmp(part.data(), whole.data() + first * rows, part.size() * 4))
            << k->name << " rows " << first << "+" << count;
      }
  }
}

TEST_P(LinearFormats, Avx2AndAvx512GiveTheSameBits) {
  if (!CpuKernels()) GTEST_SKIP() << "no AVX2";
  const auto m = RandomMatrix(GetParam(), 131, 300, 5);
  const auto x = Random(5 * 300, 6);
  const auto best = RunLinear(*CpuKernels(), m.view, x.data(), 5, 1);
  hwy::SetSupportedTargetsForTest(HWY_AVX2);
  const auto avx2 = RunLinear(*CpuKernels(), m.view, x.data(), 5, 1);
  hwy::SetSupportedTargetsForTest(0);
  EXPECT_EQ(best, avx2);
}

INSTANTIATE_TEST_SUITE_P(Formats, LinearFormats,
                         testing::Values(DType::kF32, DType::kBF16, DType::kF8E4M3, DType::kFP4),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

TEST(Attend, CpuAgreesWithRefAndASinkFarAboveDoesNotOverflow) {
  if (!CpuKernels()) GTEST_SKIP() << "no AVX2";
  const int heads = 3, width = 72, count = 41;
  const auto q = Random(heads * width, 1), keys = Random(count * width, 2);
  std::vector<const void*> rows;
  for (int s = 0; s < count; ++s) rows.push_back(keys.data() + s * width);
  const std::vector<float> sink = {0.5f, 200.f, -90.f};
  std::vector<float> want(heads * width), got(heads * width), scratch(count);
  AttendParams p = {q.data(), rows.data(), DType::kF32, sink.data(), want.data(), scratch.data(), heads, width, count, 0.118f};
  RefKernels().attend(p);
  p.out = got.data();
  CpuKernels()->attend(p);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(std::isfinite(got[i]));
    EXPECT_NEAR(got[i], want[i], 64 * kEps * 4);  // scores of norm ~4, 41 terms
  }
}

TEST(Attend, Bf16KeysGiveTheBitsOfTheirExactValues) {
  const int heads = 2, width = 72, count = 23;
  const auto q = Random(heads * width, 1), keys = Random(count * width, 2);
  std::vector<uint16_t> narrow(keys.size());
  std::vector<float> wide(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) wide[i] = BF16ToFloat(narrow[i] = FloatToBF16(keys[i]));
  std::vector<const void*> rows16, rows32;
  for (int s = 0; s < count; ++s) {
    rows16.push_back(narrow.data() + s * width);
    rows32.push_back(wide.data() + s * width);
  }
  const std::vector<float> sink = {0.5f, -1.f}, weight = {0.3f, -0.7f};
  for (const KernelTable* k : {&RefKernels(), CpuKernels()}) {
    if (!k) continue;
    std::vector<float> a(heads * width), b(heads * width), scratch(count), score_a(count), score_b(count);
    k->attend({q.data(), rows16.data(), DType::kBF16, sink.data(), a.data(), scratch.data(), heads, width, count, .1f});
    k->attend({q.data(), rows32.data(), DType::kF32, sink.data(), b.data(), scratch.data(), heads, width, count, .1f});
    EXPECT_EQ(a, b) << k->name;
    k->index_scores({q.data(), weight.data(), rows16.data(), DType::kBF16, score_a.data(), heads, width, count});
    k->index_scores({q.data(), weight.data(), rows32.data(), DType::kF32, score_b.data(), heads, width, count});
    EXPECT_EQ(score_a, score_b) << k->name;
  }
}

TEST(Round, Bf16IsNearestEvenAndExactChangesNothing) {
  const float third = 1.f / 3;
  float x[] = {1.f, 1.f + 0x1p-8f, 1.f + 3 * 0x1p-8f, third, -0.f, 3.4e38f, std::nanf("")};
  float y[] = {1.f, 1.f + 0x1p-8f, 1.f + 3 * 0x1p-8f, third, -0.f, 3.4e38f, std::nanf("")};
  RefKernels(NumericMode::kBf16).round(x, 7);
  EXPECT_EQ(x[0], 1.f);
  EXPECT_EQ(x[1], 1.f);                // halfway: to even
  EXPECT_EQ(x[2], 1.f + 4 * 0x1p-8f);  // halfway: to even
  EXPECT_NEAR(x[3], third, third * 0x1p-9f);
  EXPECT_TRUE(std::signbit(x[4]));
  EXPECT_TRUE(std::isinf(x[5]));
  EXPECT_TRUE(std::isnan(x[6]));
  RefKernels().round(y, 7);
  EXPECT_EQ(y[3], third);
}

TEST(HyperConnection, SplitGivesTheGoldenNumbers) {  // model.md 12.2
  std::vector<float> m(24), base(24);
  for (int i = 0; i < 24; ++i) {
    m[i] = 0.1f * ((7 * i) % 11 - 5);
    base[i] = 0.05f * ((3 * i) % 7 - 3);
  }
  const float scale[3] = {.5f, 1.5f, 2.f};
  float pre[4], post[4], comb[16];
  RefKernels().hc_split({m.data(), scale, base.data(), pre, post, comb, 1, 4, 20, 1e-6f});
  const double want_pre[] = {.401313340, .524980187, .512498396, .549834997};
  const double want_post[] = {1.124353002, .731728818, 1.314020925, .925140309};
  const double want_comb[] = {.153208771, .444625866, .240017849, .162146513, .253388183, .081480578,
                              .396960265, .268169974, .186654719, .381722560, .292414693, .139207028,
                              .406747327, .092169996, .070606193, .430475484};
  for (int j = 0; j < 4; ++j) {
    EXPECT_NEAR(pre[j], want_pre[j], 4 * kEps);
    EXPECT_NEAR(post[j], want_post[j], 8 * kEps);
  }
  for (int i = 0; i < 16; ++i) EXPECT_NEAR(comb[i], want_comb[i], 40 * 4 * kEps * want_comb[i]);
}

TEST(HyperConnection, ExpandSumsOverTheFirstIndexOfComb) {
  for (const KernelTable* k : {&RefKernels(), CpuKernels()}) {
    if (!k) continue;
    float h[2] = {1, 10}, y[1] = {0}, post[2] = {0, 0}, comb[4] = {1, 2, 3, 4};
    k->hc_expand({h, y, post, comb, 1, 1, 2});
    EXPECT_EQ(h[0], 1 * 1 + 3 * 10);
    EXPECT_EQ(h[1], 2 * 1 + 4 * 10);
  }
}

TEST(Router, ScoresGiveTheGoldenNumbersAndNeverUnderflowToNan) {  // model.md 12.3
  float x[] = {-3, -.5f, 0, .75f, 2, -20, 5, 1, -100, 100};
  RefKernels().router_scores({x, 10});
  const double want[] = {.2204254, .6885325, .8325546, 1.0662415, 1.4583991, 4.54e-5, 2.2375691, 1.1459763, 0, 10};
  for (int i = 0; i < 10; ++i) EXPECT_NEAR(x[i], want[i], 1e-6);
}

TEST(Swiglu, GateHasNoLowerClampAndUpHasBoth) {
  const float gate[] = {20, -20, 20}, up[] = {20, 20, -20};
  float out[3];
  RefKernels().swiglu({gate, up, nullptr, out, 1, 3, 10.f});
  EXPECT_NEAR(out[0], 10 / (1 + std::exp(-10.0)) * 10, 1e-4);
  EXPECT_NEAR(out[1], -20 / (1 + std::exp(20.0)) * 10, 1e-6);
  EXPECT_NEAR(out[2], 10 / (1 + std::exp(-10.0)) * -10, 1e-4);
}

TEST(Select, NamesWhatItAccepts) {
  EXPECT_TRUE(SelectKernels("ref").ok());
  EXPECT_TRUE(SelectKernels("auto").ok());
  const auto bad = SelectKernels("gpu");
  EXPECT_EQ(bad.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ((*SelectKernels("ref", "bf16"))->mode, NumericMode::kBf16);
  EXPECT_NE(std::string((*SelectKernels("ref", "bf16"))->numerics_id), (*SelectKernels("ref"))->numerics_id);
  EXPECT_EQ(SelectKernels("ref", "fp8").status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace cachalot::kernels

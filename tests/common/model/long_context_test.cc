// 64k tokens through the demo checkpoint: memory grows with the KV, not with the square of the length.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>
#include <sstream>

#include "tests/common/model/test_engine.h"
#include "tests/support/oracle.h"

namespace cachalot {
namespace {

constexpr int64_t kTokens = 65536, kChunk = 512;

/// Peak resident memory of this process, bytes.
int64_t PeakResident() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
  return 0;
}

TEST(LongContext, SixtyFourThousandTokensInLinearMemory) {
  const auto* table = kernels::CpuKernels(kernels::NumericMode::kBf16);
  if (!table) GTEST_SKIP() << "no AVX2";
  testing::TestEngine engine(testing::DemoDirectory(), *table, 2, kTokens + 1024);
  std::mt19937 rng(64);
  std::vector<int32_t> ids(kTokens);
  for (int32_t& id : ids) id = static_cast<int32_t>(7 + rng() % 4000);
  SequenceKv kv = engine.NewSequence(kTokens);
  const auto step = [&](int64_t at, int64_t count) {
    const Segment segment{&kv, std::span(ids).subspan(at, count), false};
    const auto logits = engine.model().Forward({&segment, 1}, engine.experts());
    ASSERT_TRUE(logits.ok());
    for (float value : logits->last(0)) ASSERT_TRUE(std::isfinite(value)) << "position " << at + count - 1;
  };
  step(0, kChunk);
  const int64_t before = PeakResident();
  constexpr int64_t kDecoded = 16;
  for (int64_t at = kChunk; at < kTokens - kDecoded; at += kChunk) step(at, std::min(kChunk, kTokens - kDecoded - at));
  for (int64_t at = kTokens - kDecoded; at < kTokens; ++at) step(at, 1);
  const int64_t kv_bytes = engine.layout().BytesFor(kTokens), grown = PeakResident() - before;
  RecordProperty("kv_bytes", std::to_string(kv_bytes));
  RecordProperty("grown_bytes", std::to_string(grown));
  // Beside the KV only lists of one query's keys and scores grow: 8 + 4 + 4 bytes an entry, doubled by their vectors.
  EXPECT_LE(grown, kv_bytes + 2 * 2 * 16 * (kTokens / 4) + (8 << 20));
}

}  // namespace
}  // namespace cachalot

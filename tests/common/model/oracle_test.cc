// The whole model against reference logits and greedy tokens, and its own paths against each other bit for bit.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "tests/common/model/test_engine.h"
#include "tests/support/oracle.h"

namespace cachalot {
namespace {

using testing::OracleCase;
using Engine = testing::TestEngine;

constexpr double kTolerance = 1e-4;

double WorstError(std::span<const float> got, std::span<const float> want) {
  EXPECT_EQ(got.size(), want.size());
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(std::isfinite(got[i])) << "value " << i;
    worst = std::max(worst, std::fabs(static_cast<double>(got[i]) - want[i]));
  }
  return worst;
}

std::vector<const kernels::KernelTable*> BackEnds() {
  std::vector<const kernels::KernelTable*> tables = {&kernels::RefKernels()};
  if (kernels::CpuKernels()) tables.push_back(kernels::CpuKernels());
  return tables;
}

class Oracle : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { case_ = *OracleCase::Load(GetParam()); }
  std::vector<int32_t> AllIds() const {
    std::vector<int32_t> ids = case_.input_ids;
    ids.insert(ids.end(), case_.greedy_tokens.begin(), case_.greedy_tokens.end());
    return ids;
  }
  OracleCase case_;
};

TEST_P(Oracle, PromptLogitsAgreeInBothConfigForms) {
  for (const std::string& directory : {GetParam(), testing::WithOfficialConfig(GetParam())}) {
    if (directory.empty()) continue;
    for (const auto* kernels : BackEnds()) {
      Engine engine(directory, *kernels);
      SequenceKv kv = engine.NewSequence(case_.input_ids.size());
      const auto logits = engine.Run(kv, case_.input_ids, case_.input_ids.size());
      const double worst = WorstError(logits, case_.prompt_logits);
      RecordProperty(std::string("max_abs_error_") + kernels->name, std::to_string(worst));
      EXPECT_LE(worst, kTolerance) << directory << " " << kernels->name;
    }
  }
}

TEST_P(Oracle, GreedyTokensAndTheirLogitsAgree) {
  for (const auto* kernels : BackEnds()) {
    Engine engine(GetParam(), *kernels);
    SequenceKv kv = engine.NewSequence(case_.input_ids.size() + case_.greedy_tokens.size());
    auto logits = engine.Run(kv, case_.input_ids, 64);
    const size_t vocab = logits.size() / case_.input_ids.size();
    std::vector<float> row(logits.end() - vocab, logits.end());
    std::vector<int32_t> tokens;
    for (size_t i = 0; i < case_.greedy_tokens.size(); ++i) {
      EXPECT_LE(WorstError(row, std::span(case_.greedy_logits).subspan(i * vocab, vocab)), kTolerance) << "step " << i;
      tokens.push_back(static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
      if (i + 1 < case_.greedy_tokens.size()) row = engine.Run(kv, {&tokens.back(), 1}, 1);
    }
    EXPECT_EQ(tokens, case_.greedy_tokens) << kernels->name;
  }
}

TEST_P(Oracle, ChunksAndThreadsChangeNoBit) {
  for (const auto* kernels : BackEnds()) {
    Engine engine(GetParam(), *kernels), threaded(GetParam(), *kernels, 2);
    const auto ids = AllIds();
    SequenceKv kv = engine.NewSequence(ids.size());
    const auto whole = engine.Run(kv, ids, ids.size());
    const bool oracle = kernels == &kernels::RefKernels();  // slow, and its paths are the same code
    for (size_t chunk : oracle ? std::vector<size_t>{7} : std::vector<size_t>{1, 3, 7, 64}) {
      kv.Reset();
      EXPECT_EQ(whole, engine.Run(kv, ids, chunk)) << kernels->name << " chunk " << chunk;
    }
    SequenceKv other = threaded.NewSequence(ids.size());
    EXPECT_EQ(whole, threaded.Run(other, ids, 64)) << kernels->name << " two threads";
  }
}

TEST_P(Oracle, PrefillAtEverySplitThenDecodeChangesNoBit) {
  const auto* kernels = BackEnds().back();
  Engine engine(GetParam(), *kernels);
  const auto ids = AllIds();
  SequenceKv kv = engine.NewSequence(ids.size());
  const auto whole = engine.Run(kv, ids, ids.size());
  const size_t vocab = whole.size() / ids.size();
  constexpr size_t kDecoded = 9;  // crosses two windows of ratio 4
  for (size_t split = 1; split < ids.size(); ++split) {
    kv.Reset();
    engine.Run(kv, std::span(ids).first(split), split);
    const size_t count = std::min(kDecoded, ids.size() - split);
    const auto tail = engine.Run(kv, std::span(ids).subspan(split, count), 1);
    ASSERT_EQ(0, std::memcmp(tail.data(), whole.data() + split * vocab, tail.size() * 4)) << "split " << split;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Oracle, ::testing::ValuesIn(testing::OracleDirectories()), [](const auto& info) {
  std::string name = std::filesystem::path(info.param).filename();
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace cachalot

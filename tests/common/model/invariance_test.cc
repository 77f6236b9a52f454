// What a row's bits may depend on: nothing but its sequence. In both modes, on every back end; then the boundaries of
// window, compressor and indexer (model.md 12.5), and what mode bf16 may differ from mode exact by.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <random>

#include "common/kv/transfer_frame.h"
#include "hwy/targets.h"
#include "tests/common/model/test_engine.h"
#include "tests/support/oracle.h"

namespace cachalot {
namespace {

using kernels::KernelTable;
using kernels::NumericMode;
using testing::TestEngine;

const std::string kTiny = CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny";

std::vector<int32_t> RandomIds(size_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 512);
  return ids;
}

std::vector<const KernelTable*> Tables(NumericMode mode) {
  std::vector<const KernelTable*> tables = {&kernels::RefKernels(mode)};
  if (kernels::CpuKernels(mode)) tables.push_back(kernels::CpuKernels(mode));
  return tables;
}

/// Every row that a continuation of `kv` may read.
std::vector<std::byte> AllRows(const SequenceKv& kv) {
  std::vector<std::byte> bytes;
  for (const RowRange& range : HandOffRows(kv.layout(), kv.tokens())) {
    const int64_t row_bytes = kv.layout().pool(range.pool).row_bytes();
    for (int64_t r = 0; r < range.count; ++r) {
      const std::byte* row = kv.RowBytes(range.pool, range.layer, range.first + r);
      bytes.insert(bytes.end(), row, row + row_bytes);
    }
  }
  return bytes;
}

class Invariance : public ::testing::TestWithParam<NumericMode> {};

TEST_P(Invariance, BatchesOfOneToSixteenChangeNoBit) {
  for (const KernelTable* table : Tables(GetParam())) {
    TestEngine engine(kTiny, *table);
    constexpr size_t kSequences = 16, kSteps = 6;
    std::vector<SequenceKv> kvs;
    std::vector<std::vector<int32_t>> ids;
    std::vector<std::vector<float>> alone;
    for (size_t i = 0; i < kSequences; ++i) {
      ids.push_back(RandomIds(1 + 9 * i + kSteps, static_cast<uint32_t>(i)));
      SequenceKv kv = engine.NewSequence(256);
      engine.Run(kv, std::span(ids[i]).first(ids[i].size() - kSteps), 64);
      SequenceKv other = engine.NewSequence(256);
      alone.push_back(engine.Run(other, ids[i], 1));
      kvs.push_back(std::move(kv));
    }
    const size_t vocab = engine.config().vocab_size;
    // Every batch size in turn: sequences 0..b-1 take a step together until they have no tokens left.
    size_t batch = kSequences;
    for (size_t step = 0; step < kSteps; ++step, batch = batch > 3 ? batch - 3 : 1) {
      std::vector<Segment> segments;
      for (size_t i = 0; i < batch; ++i)
        segments.push_back({&kvs[i], std::span(ids[i]).subspan(ids[i].size() - kSteps + step, 1), false});
      const auto logits = engine.model().Forward(segments, engine.experts());
      ASSERT_TRUE(logits.ok());
      for (size_t i = 0; i < batch; ++i)
        ASSERT_EQ(0, std::memcmp(logits->last(i).data(), alone[i].data() + (ids[i].size() - kSteps + step) * vocab,
                                 vocab * sizeof(float)))
            << table->name << ": sequence " << i << " in a batch of " << batch;
    }
  }
}

TEST_P(Invariance, ChunksAndThreadsChangeNoBit) {
  for (const KernelTable* table : Tables(GetParam())) {
    const auto ids = RandomIds(300, 1);
    TestEngine engine(kTiny, *table), threaded(kTiny, *table, 2);
    SequenceKv kv = engine.NewSequence(300), other = threaded.NewSequence(300);
    const auto whole = engine.Run(kv, ids, 300);
    EXPECT_EQ(whole, threaded.Run(other, ids, 64)) << table->name;
    for (size_t chunk : {1, 7}) {
      SequenceKv again = engine.NewSequence(300);
      EXPECT_EQ(whole, engine.Run(again, ids, chunk)) << table->name << " chunk " << chunk;
      EXPECT_EQ(AllRows(kv), AllRows(again));
    }
  }
}

/// Lengths around every edge of window (16 here), ratio 4, ratio 128 and index_topk: logits and every cache row.
TEST_P(Invariance, EveryBoundaryOfPrefillAndDecode) {
  const KernelTable& table = *Tables(GetParam()).back();
  TestEngine engine(kTiny, table, 1, 32768);
  const auto ids = RandomIds(4100 + 3, 7);
  const size_t vocab = engine.config().vocab_size;
  SequenceKv all = engine.NewSequence(ids.size());
  const auto whole = engine.Run(all, ids, 512);
  for (size_t n : {1, 3, 4, 5, 7, 8, 15, 16, 17, 127, 128, 129, 131, 255, 256, 257, 2051, 2052, 4100}) {
    SequenceKv at_once = engine.NewSequence(n + 3), in_chunks = engine.NewSequence(n + 3);
    engine.Run(at_once, std::span(ids).first(n), n);
    engine.Run(in_chunks, std::span(ids).first(n), 61);
    ASSERT_EQ(AllRows(at_once), AllRows(in_chunks)) << "prefill of " << n;
    const auto decoded = engine.Run(at_once, std::span(ids).subspan(n, 3), 1);
    ASSERT_EQ(0, std::memcmp(decoded.data(), whole.data() + n * vocab, decoded.size() * sizeof(float))) << n;
    SequenceKv longer = engine.NewSequence(n + 3);
    engine.Run(longer, std::span(ids).first(n + 3), n + 3);
    ASSERT_EQ(AllRows(at_once), AllRows(longer)) << "decode behind " << n;
  }
}

/// The whole model on both instruction sets of the `cpu` back end.
TEST_P(Invariance, Avx2AndAvx512GiveTheSameBits) {
  if (!kernels::CpuKernels()) GTEST_SKIP() << "no AVX2";
  const auto ids = RandomIds(300, 3);
  for (const std::string& directory : testing::OracleDirectories()) {
    TestEngine engine(directory, *kernels::CpuKernels(GetParam()));
    SequenceKv best = engine.NewSequence(300), avx2 = engine.NewSequence(300);
    const auto want = engine.Run(best, ids, 64);
    hwy::SetSupportedTargetsForTest(HWY_AVX2);
    const auto got = engine.Run(avx2, ids, 64);
    hwy::SetSupportedTargetsForTest(0);
    EXPECT_EQ(want, got) << directory;
    EXPECT_EQ(AllRows(best), AllRows(avx2)) << directory;
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, Invariance, ::testing::Values(NumericMode::kExact, NumericMode::kBf16),
                         [](const auto& info) { return std::string(ModeName(info.param)); });

/// |got - want| / |want| of every row.
std::vector<double> RelativeErrors(std::span<const float> got, std::span<const float> want, size_t vocab) {
  std::vector<double> errors;
  for (size_t t = 0; t < want.size() / vocab; ++t) {
    double difference = 0, norm = 0;
    for (size_t i = t * vocab; i < (t + 1) * vocab; ++i) {
      difference += (got[i] - want[i]) * (got[i] - want[i]);
      norm += want[i] * want[i];
    }
    errors.push_back(std::sqrt(difference / norm));
  }
  return errors;
}

/// bf16 keeps 8 significant bits: one rounding moves a value by at most u = 2^-9 of it. Along the residual path of a
/// layer 16 tensors are rounded one behind the other (2 sub-layers of: collapsed row, norm, low-rank or gate product,
/// its norm or activation, core output, projection, sub-layer output, streams), so to first order a row's relative error is at most
/// 16 L u plus the head's two. Where a rounding flips a choice of router or indexer another function comes out, so the
/// choices of the exact run are replayed: then the bound holds every row.
TEST(Bf16, DiffersFromExactByNoMoreThanItsRoundingsAllow) {
  constexpr double u = 1.0 / 512;
  constexpr size_t kTokens = 300;  // two entries of ratio 128; 75 of ratio 4, of which the indexer takes 8
  const auto ids = RandomIds(kTokens, 5);
  for (const std::string& directory : testing::OracleDirectories()) {
    for (size_t back_end = 0; back_end < Tables(NumericMode::kBf16).size(); ++back_end) {
      TestEngine exact(directory, *Tables(NumericMode::kExact)[back_end]);
      TestEngine bf16(directory, *Tables(NumericMode::kBf16)[back_end]);
      SequenceKv a = exact.NewSequence(kTokens), b = bf16.NewSequence(kTokens);
      ChoiceTrace choices;
      const auto want = exact.Run(a, ids, 64, &choices);
      choices.Replay();
      const auto got = bf16.Run(b, ids, 64, &choices);
      const auto errors = RelativeErrors(got, want, exact.config().vocab_size);
      const double bound = (16 * exact.config().num_hidden_layers + 2) * u;
      const auto worst = std::max_element(errors.begin(), errors.end());
      const std::string name = std::filesystem::path(directory).filename().string() + "_" + std::to_string(back_end);
      RecordProperty("worst_relative_error_" + name, std::to_string(*worst));
      RecordProperty("bound_" + name, std::to_string(bound));
      RecordProperty("flipped_choices_" + name, std::to_string(choices.changed()));
      RecordProperty("choices_" + name, std::to_string(choices.recorded()));
      EXPECT_LE(*worst, bound) << directory << ": row " << worst - errors.begin();  // also not for NaN
      EXPECT_GT(*std::min_element(errors.begin(), errors.end()), u / 16) << directory << ": nothing was rounded";
    }
  }
}

/// What the bound is kept from: without the replay rows of another choice break it.
TEST(Bf16, AFlippedChoiceIsAnotherFunction) {
  TestEngine exact(kTiny, *Tables(NumericMode::kExact)[0]);
  const auto ids = RandomIds(40, 6);
  ChoiceTrace choices;
  SequenceKv a = exact.NewSequence(40), b = exact.NewSequence(40), c = exact.NewSequence(40);
  const auto want = exact.Run(a, ids, 40, &choices);
  ASSERT_GT(choices.recorded(), 0);
  choices.Replay();
  EXPECT_EQ(want, exact.Run(b, ids, 1, &choices));
  EXPECT_EQ(choices.changed(), 0);
  ChoiceTrace other;
  for (int layer = 0; layer < exact.config().num_hidden_layers; ++layer)
    for (int64_t p = 0; p < 40; ++p) {
      std::vector<int32_t> experts(exact.config().num_experts_per_tok);
      std::iota(experts.begin(), experts.end(), 0);
      other.Apply(ChoiceTrace::Kind::kExperts, layer, p, experts);
      std::vector<int32_t> entries(exact.config().index_topk);
      std::iota(entries.begin(), entries.end(), 0);
      other.Apply(ChoiceTrace::Kind::kEntries, layer, p, entries);
    }
  other.Replay();
  const auto changed = exact.Run(c, ids, 40, &other);
  EXPECT_GT(other.changed(), 0);
  const auto errors = RelativeErrors(changed, want, exact.config().vocab_size);
  EXPECT_GT(*std::max_element(errors.begin(), errors.end()), 0.1);
}

/// model.md 4.5, bf16 rows and full state buffers, Flash's shape.
TEST(KvBytes, AreThoseOfTheSpec) {
  KvModelShape shape;
  for (int i = 0; i < 43; ++i)
    shape.layers.push_back(i < 2 ? KvLayerKind::kWindow : i % 2 == 0 ? KvLayerKind::kCsa : KvLayerKind::kHca);
  shape.head_dim = 512;
  shape.index_head_dim = 128;
  shape.sliding_window = 128;
  shape.kv_type = DType::kBF16;
  const KvLayout layout(shape);
  EXPECT_EQ(layout.BytesFor(1024), 24'887'296);
  EXPECT_EQ(layout.BytesFor(32768), 243'286'016);
  EXPECT_EQ(layout.BytesFor(131072), 919'617'536);
  EXPECT_EQ(layout.BytesFor(1048576), 7'232'045'056);
}

}  // namespace
}  // namespace cachalot

// Rollback (model.md 4.2): a verify step of 1 + k tokens, rolled back to any accepted length, leaves the bits of
// one-token steps: its logits, every row that a continuation reads, and the logits of what follows. In both
// modes, around every boundary of ratio 4, ratio 128, window (16), index_topk (8 entries) and the rings'
// wrap-arounds.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <random>

#include "common/kv/snapshot.h"
#include "common/kv/transfer_frame.h"
#include "tests/common/model/test_engine.h"

namespace cachalot {
namespace {

using kernels::KernelTable;
using kernels::NumericMode;
using ::testing::HasSubstr;
using testing::TestEngine;
using Bytes = std::vector<std::byte>;

constexpr int64_t kMaxDrafts = 7;
const std::string kTiny = CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny";

std::vector<const KernelTable*> Tables(NumericMode mode) {
  std::vector<const KernelTable*> tables = {&kernels::RefKernels(mode)};
  if (kernels::CpuKernels(mode)) tables.push_back(kernels::CpuKernels(mode));
  return tables;
}

/// Every row that a continuation of `kv` may read.
Bytes RowsOf(const SequenceKv& kv) {
  Bytes bytes;
  for (const RowRange& range : HandOffRows(kv.layout(), kv.tokens())) {
    const int64_t row_bytes = kv.layout().pool(range.pool).row_bytes();
    for (int64_t r = 0; r < range.count; ++r) {
      const std::byte* row = kv.RowBytes(range.pool, range.layer, range.first + r);
      bytes.insert(bytes.end(), row, row + row_bytes);
    }
  }
  return bytes;
}

/// All memory of `kv` becomes NaN: what reads a row that nobody wrote cannot go unnoticed.
void Poison(SequenceKv& kv) {
  for (int p = 0; p < kPoolCount; ++p) {
    const PoolSpec& pool = kv.layout().pool(static_cast<PoolTag>(p));
    const int64_t rows = pool.ring ? pool.rows_per_block : kv.capacity() / pool.ratio;
    for (int layer : pool.layers)
      for (int64_t row = 0; row < rows; ++row)
        std::memset(kv.RowBytes(pool.tag, layer, row), 0xff, pool.row_bytes());
  }
}

/// One sequence in one-token steps on a KV without room for drafts: what every other way must equal.
class Reference {
 public:
  Reference(TestEngine& engine, size_t tokens, uint32_t seed) : vocab_(engine.config().vocab_size) {
    std::mt19937 rng(seed);
    for (size_t i = 0; i < tokens; ++i) ids_.push_back(static_cast<int32_t>(rng() % vocab_));
    SequenceKv kv = engine.NewSequence(static_cast<int64_t>(tokens));
    for (size_t i = 0; i < tokens; ++i) {
      snapshots_.push_back(i == 0 ? Bytes{}
                                  : *WriteSnapshot(kv, "", {{ids_.begin(), ids_.begin() + i}, {}, {}}));
      rows_.push_back(RowsOf(kv));
      const auto logits = engine.Run(kv, std::span(ids_).subspan(i, 1), 1);
      logits_.insert(logits_.end(), logits.begin(), logits.end());
    }
  }
  std::span<const int32_t> ids(int64_t from, int64_t count) const {
    return std::span(ids_).subspan(from, count);
  }
  /// The state after n tokens; its rows alone, or as a snapshot to start from.
  const Bytes& rows(int64_t n) const { return rows_[n]; }
  const Bytes& snapshot(int64_t n) const { return snapshots_[n]; }
  /// True if these are the logits of position p.
  bool Equals(int64_t p, std::span<const float> logits) const {
    return 0 == std::memcmp(logits.data(), logits_.data() + p * vocab_, vocab_ * sizeof(float));
  }

  /// A verify step's tokens behind the first n: the next one, `accepted` right drafts, then wrong ones.
  std::vector<int32_t> Drafts(int64_t n, int64_t accepted, int64_t count) const {
    std::vector<int32_t> drafts(ids_.begin() + n, ids_.begin() + n + 1 + count);
    for (int64_t i = accepted + 1; i <= count; ++i)
      drafts[i] = static_cast<int32_t>((drafts[i] + 1 + i) % vocab_);
    return drafts;
  }

 private:
  size_t vocab_;
  std::vector<int32_t> ids_;
  std::vector<Bytes> rows_, snapshots_;
  std::vector<float> logits_;
};

/// Runs `drafts` in one step and compares the logits of the accepted ones. False if they differ.
bool Verify(TestEngine& engine, SequenceKv& kv, const Reference& reference, std::span<const int32_t> drafts,
            int64_t accepted) {
  const int64_t n = kv.tokens();
  const Segment segment{&kv, drafts, true};
  const auto logits = engine.model().Forward({&segment, 1}, engine.experts());
  if (!logits.ok()) return false;
  for (int64_t i = 0; i <= accepted; ++i)
    if (!reference.Equals(n + i, logits->row(i))) return false;
  return true;
}

class Rollback : public ::testing::TestWithParam<NumericMode> {};

/// One verify step at n, rolled back to n + 1 + accepted, then two single tokens and another verify step.
void CheckVerifyAt(TestEngine& engine, const Reference& reference, SequenceKv& kv, int64_t n,
                   int64_t accepted) {
  const int64_t k = kv.layout().draft_tokens();
  ASSERT_TRUE(Verify(engine, kv, reference, reference.Drafts(n, accepted, k), accepted));
  ASSERT_EQ(kv.tokens(), n + 1 + k);
  ASSERT_EQ(kv.Rollback(n + 1 + accepted), OkStatus());
  ASSERT_EQ(RowsOf(kv), reference.rows(n + 1 + accepted)) << "rows after the rollback";
  for (int i = 0; i < 2; ++i)
    ASSERT_TRUE(Verify(engine, kv, reference, reference.ids(kv.tokens(), 1), 0)) << "continuation " << i;
  ASSERT_TRUE(Verify(engine, kv, reference, reference.Drafts(kv.tokens(), 0, k), 0)) << "second verify step";
  ASSERT_EQ(kv.Rollback(n + 4 + accepted), OkStatus());
  ASSERT_EQ(RowsOf(kv), reference.rows(n + 4 + accepted)) << "rows after the second rollback";
}

/// Behind a hand-off at n: everything but the rows handed over is NaN, so this also shows that they are
/// enough.
TEST_P(Rollback, EveryAcceptedLengthAtEveryBoundary) {
  const auto tables = Tables(GetParam());
  for (const KernelTable* table : tables) {
    TestEngine engine(kTiny, *table);
    const Reference reference(engine, 300, 11);
    // 4, 16, 16 + k and index_topk lie below 40; 128 + k and its second wrap around 128 and 256.
    std::vector<int64_t> lengths;
    for (int64_t n = 1; n < 280; ++n)
      if (n < 42 || (n >= 118 && n <= 138) || (n >= 246 && n <= 272)) lengths.push_back(n);
    for (int64_t k = 1; k <= kMaxDrafts; ++k) {
      if (table != tables.back() && k != 3 && k != kMaxDrafts) continue;
      BlockPools pools(KvLayout(KvShapeOf(engine.config(), GetParam()), static_cast<int>(k)), 1, 300);
      for (int64_t n : lengths)
        for (int64_t accepted = 0; accepted <= k; ++accepted) {
          if (table != tables.back() && accepted % 3 != 0) continue;
          SequenceKv kv = *pools.Reserve(300);
          Poison(kv);
          ASSERT_TRUE(ReadSnapshot(reference.snapshot(n), "", &kv).ok());
          CheckVerifyAt(engine, reference, kv, n, accepted);
          ASSERT_FALSE(HasFatalFailure())
              << table->name << ": k " << k << ", n " << n << ", accepted " << accepted;
        }
    }
  }
}

/// Sequences that speculate side by side for their whole life, each with drafts and luck of its own.
TEST_P(Rollback, LongSpeculationInABatchChangesNoBit) {
  const KernelTable& table = *Tables(GetParam()).back();
  TestEngine engine(kTiny, table);
  constexpr int64_t kTokens = 420, kSequences = 3;
  std::vector<Reference> references;
  for (uint32_t i = 0; i < kSequences; ++i) references.emplace_back(engine, kTokens, 30 + i);
  for (int64_t k : {1, 2, 4, 7}) {
    BlockPools pools(KvLayout(KvShapeOf(engine.config(), GetParam()), static_cast<int>(k)), kSequences, 2048);
    std::vector<SequenceKv> kvs;
    for (int64_t i = 0; i < kSequences; ++i) {
      kvs.push_back(*pools.Reserve(kTokens));
      Poison(kvs.back());
      engine.Run(kvs.back(), references[i].ids(0, 1 + 40 * i), 17 + 40 * i);
    }
    std::mt19937 rng(static_cast<uint32_t>(k));
    while (kvs[0].tokens() + k < kTokens - 1) {
      std::array<int64_t, kSequences> accepted{}, from{};
      std::array<std::vector<int32_t>, kSequences> drafts;
      std::vector<Segment> segments;
      std::vector<size_t> who;
      for (size_t i = 0; i < kSequences; ++i) {
        from[i] = kvs[i].tokens();
        const int64_t count = std::min<int64_t>(rng() % (k + 1), kTokens - 1 - from[i]);
        if (count < 0) continue;
        accepted[i] = static_cast<int64_t>(rng() % (count + 1));
        drafts[i] = references[i].Drafts(from[i], accepted[i], count);
        segments.push_back({&kvs[i], drafts[i], true});
        who.push_back(i);
      }
      const auto logits = engine.model().Forward(segments, engine.experts());
      ASSERT_TRUE(logits.ok());
      for (size_t s = 0; s < who.size(); ++s) {
        const size_t i = who[s];
        for (int64_t j = 0; j <= accepted[i]; ++j)
          ASSERT_TRUE(references[i].Equals(from[i] + j, logits->row(logits->first[s] + j)))
              << from[i] << " + " << j;
        ASSERT_EQ(kvs[i].Rollback(from[i] + 1 + accepted[i]), OkStatus());
        if (kvs[i].tokens() < kTokens)
          ASSERT_EQ(RowsOf(kvs[i]), references[i].rows(kvs[i].tokens())) << "k " << k;
      }
    }
  }
}

/// Behind a prefill in this process, any of the last k tokens may go, also tokens of the prefill itself.
TEST_P(Rollback, ReachesIntoAPrefill) {
  const KernelTable& table = *Tables(GetParam()).back();
  TestEngine engine(kTiny, table);
  const Reference reference(engine, 280, 12);
  BlockPools pools(KvLayout(KvShapeOf(engine.config(), GetParam()), kMaxDrafts), 1, 300);
  for (int64_t n : {8, 17, 37, 130, 131, 259})
    for (int64_t drop = 0; drop <= kMaxDrafts; ++drop)
      for (size_t chunk : {9, 300}) {
        SequenceKv kv = *pools.Reserve(300);
        Poison(kv);
        engine.Run(kv, reference.ids(0, n), chunk);
        ASSERT_EQ(kv.Rollback(n - drop), OkStatus());
        ASSERT_EQ(RowsOf(kv), reference.rows(n - drop));
        ASSERT_TRUE(Verify(engine, kv, reference, reference.ids(n - drop, 5), 4)) << n << " - " << drop;
      }
}

/// Frames of a prefill worker without room for drafts feed a decode worker with it.
TEST_P(Rollback, BehindAHandOffFromAWorkerWithoutDrafts) {
  const KernelTable& table = *Tables(GetParam()).back();
  TestEngine engine(kTiny, table);
  const Reference reference(engine, 160, 14);
  BlockPools pools(KvLayout(KvShapeOf(engine.config(), GetParam()), kMaxDrafts), 1, 300);
  EXPECT_EQ(pools.layout().Describe(), engine.layout().Describe());
  for (int64_t n : {5, 22, 36, 127, 129})
    for (int64_t accepted : {0, 3, 7}) {
      SequenceKv from = engine.NewSequence(300), kv = *pools.Reserve(300);
      Poison(kv);
      engine.Run(from, reference.ids(0, n), n);
      KvReceiver receiver(&kv, 300);
      KvCommit commit{n};
      for (const RowRange& range : HandOffRows(from.layout(), n)) {
        const auto frame = EncodeRows(from, range, 1, 1, 0);
        ASSERT_EQ(receiver.Place(*ParseKvFrame(frame)), OkStatus());
        commit.tally.Add(ParseKvFrame(frame)->header);
      }
      ASSERT_EQ(receiver.Commit(commit), OkStatus());
      EXPECT_EQ(kv.Rollback(n - 1).code(), StatusCode::kOutOfRange);
      CheckVerifyAt(engine, reference, kv, n, accepted);
      ASSERT_FALSE(HasFatalFailure()) << "n " << n << ", accepted " << accepted;
    }
}

/// Experts that do not answer the call `fail_at`.
class FailingOnce : public ExpertBackend {
 public:
  FailingOnce(ExpertBackend& inner, int fail_at) : inner_(inner), left_(fail_at) {}
  Status Begin(const ExpertCall& call) override {
    return left_-- == 0 ? Unavailable("shard 0 is away") : inner_.Begin(call);
  }
  Status Wait() override { return inner_.Wait(); }

 private:
  ExpertBackend& inner_;
  int left_;
};

/// A verify step whose experts fail in any layer may be run again, or be given up for a step of one token.
TEST_P(Rollback, AFailedVerifyStepMayBeRunAgain) {
  const KernelTable& table = *Tables(GetParam()).back();
  TestEngine engine(kTiny, table);
  const Reference reference(engine, 160, 13);
  BlockPools pools(KvLayout(KvShapeOf(engine.config(), GetParam()), kMaxDrafts), 1, 300);
  for (int64_t n : {3, 7, 15, 23, 35, 127, 131, 135})
    for (int layer = 0; layer < engine.config().num_hidden_layers; ++layer) {
      SequenceKv kv = *pools.Reserve(300);
      Poison(kv);
      ASSERT_TRUE(ReadSnapshot(reference.snapshot(n), "", &kv).ok());
      const auto drafts = reference.Drafts(n, 2, kMaxDrafts);
      const Segment segment{&kv, drafts, true};
      FailingOnce failing(engine.experts(), layer);
      ASSERT_EQ(engine.model().Forward({&segment, 1}, failing).status().code(), StatusCode::kUnavailable);
      ASSERT_EQ(kv.tokens(), n);
      ASSERT_TRUE(kv.whole());
      ASSERT_EQ(RowsOf(kv), reference.rows(n)) << "layer " << layer << ", n " << n;
      if (layer % 2 == 0) {
        CheckVerifyAt(engine, reference, kv, n, 2);
      } else {
        ASSERT_TRUE(Verify(engine, kv, reference, reference.ids(n, 1), 0));
        CheckVerifyAt(engine, reference, kv, n + 1, 2);
      }
      ASSERT_FALSE(HasFatalFailure()) << "layer " << layer << ", n " << n;
    }
}

INSTANTIATE_TEST_SUITE_P(Modes, Rollback, ::testing::Values(NumericMode::kExact, NumericMode::kBf16),
                         [](const auto& info) { return std::string(ModeName(info.param)); });

// ------------------------------------------------------------------------------------------------- what is
// refused

class Refusals : public ::testing::Test {
 protected:
  static constexpr int kDrafts = 3;
  void ExpectRefused(int64_t n, const std::string& text) {
    const int64_t before = kv_.tokens();
    const Status status = kv_.Rollback(n);
    EXPECT_EQ(status.code(), StatusCode::kOutOfRange) << status;
    EXPECT_THAT(StatusMessage(status), HasSubstr(text));
    EXPECT_EQ(kv_.tokens(), before);
  }
  BlockPools pools_{
      KvLayout({{KvLayerKind::kWindow, KvLayerKind::kCsa, KvLayerKind::kHca}, 8, 4, 16}, kDrafts), 1, 512};
  SequenceKv kv_ = *pools_.Reserve(512);
};

TEST_F(Refusals, NameBothNumbers) {
  kv_.Advance(100);
  ExpectRefused(96, "rollback from 100 to 96 tokens: 4 to drop, the rings have room for 3 draft tokens");
  ExpectRefused(101, "rollback from 100 to 101 tokens: the target lies outside");
  ExpectRefused(-1, "rollback from 100 to -1 tokens: the target lies outside");
  EXPECT_EQ(kv_.Rollback(100), OkStatus());
  EXPECT_EQ(kv_.Rollback(97), OkStatus());
  EXPECT_EQ(kv_.tokens(), 97);
}

/// Each of two rollbacks may be short enough, and the two together too long: the first left rejected rows in
/// the slots.
TEST_F(Refusals, RollbacksDoNotAddUp) {
  kv_.Advance(100);
  ASSERT_EQ(kv_.Rollback(97), OkStatus());
  ExpectRefused(95, "the rings have been written up to 100 with room for 3 draft tokens");
  kv_.Advance(1);
  EXPECT_EQ(kv_.Rollback(96), OkStatus());
  kv_.Advance(10);
  EXPECT_EQ(kv_.Rollback(103), OkStatus());
}

TEST_F(Refusals, NothingGoesBehindAHandOff) {
  kv_.SetTokens(50);
  ExpectRefused(49, "rows before the hand-off at 50 are not here");
  kv_.Advance(2);
  ExpectRefused(49, "rows before the hand-off at 50 are not here");
  EXPECT_EQ(kv_.Rollback(50), OkStatus());
  kv_.Reset();
  kv_.Advance(3);
  EXPECT_EQ(kv_.Rollback(0), OkStatus());
}

TEST_F(Refusals, AFailedStepOfMoreThanTheDraftsIsNoticed) {
  kv_.Advance(50);
  kv_.BeginWrite(1 + kDrafts);
  EXPECT_TRUE(kv_.whole());
  kv_.BeginWrite(2 + kDrafts);
  EXPECT_FALSE(kv_.whole());
  ExpectRefused(50, "the rings have been written up to 55");
  SequenceKv moved = std::move(kv_);
  EXPECT_FALSE(moved.whole());
  moved.Reset();
  EXPECT_TRUE(moved.whole());
}

}  // namespace
}  // namespace cachalot

// Snapshots: what is written comes back, what is damaged or foreign is refused by name and touches nothing,
// and the stored ones of tests/golden/kv continue with the same bits.

#include "common/kv/snapshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>

#include "common/kv/transfer_frame.h"
#include "tests/common/model/test_engine.h"

namespace cachalot {
namespace {

using Bytes = std::vector<std::byte>;
using kernels::NumericMode;
using ::testing::HasSubstr;

constexpr auto kWindow = KvLayerKind::kWindow, kCsa = KvLayerKind::kCsa, kHca = KvLayerKind::kHca;
constexpr std::string_view kCompat = "weights 0011, exact";
constexpr int64_t kCapacity = 256;

KvModelShape Shape() { return {{kWindow, kCsa, kHca, kCsa}, 8, 4, 16}; }

std::span<std::byte> RowAt(SequenceKv& kv, PoolTag pool, int layer, int64_t row) {
  return {kv.RowBytes(pool, layer, row), static_cast<size_t>(kv.layout().pool(pool).row_bytes())};
}

/// Calls `visit` with every row that the sequence has memory for.
void ForEachSlot(SequenceKv& kv, const std::function<void(std::span<std::byte>)>& visit) {
  for (int p = 0; p < kPoolCount; ++p) {
    const PoolSpec& pool = kv.layout().pool(static_cast<PoolTag>(p));
    const int64_t rows = pool.ring ? pool.rows_per_block : kv.capacity() / pool.ratio;
    for (int layer : pool.layers)
      for (int64_t row = 0; row < rows; ++row) visit(RowAt(kv, pool.tag, layer, row));
  }
}

void FillWithNoise(SequenceKv& kv, uint32_t seed) {
  std::mt19937 rng(seed);
  ForEachSlot(kv, [&](std::span<std::byte> row) {
    for (std::byte& byte : row) byte = static_cast<std::byte>(rng());
  });
}

Bytes AllMemory(SequenceKv& kv) {
  Bytes bytes;
  ForEachSlot(kv, [&](std::span<std::byte> row) { bytes.insert(bytes.end(), row.begin(), row.end()); });
  return bytes;
}

Bytes HandOffBytes(SequenceKv& kv) {
  Bytes bytes;
  for (const RowRange& range : HandOffRows(kv.layout(), kv.tokens()))
    for (int64_t r = 0; r < range.count; ++r) {
      const auto row = RowAt(kv, range.pool, range.layer, range.first + r);
      bytes.insert(bytes.end(), row.begin(), row.end());
    }
  return bytes;
}

SnapshotContents ContentsOf(int64_t tokens) {
  SnapshotContents contents{{}, {0.5f, -1.f, 3e38f}, {std::byte{7}, std::byte{0}, std::byte{255}}};
  for (int64_t i = 0; i < tokens; ++i) contents.ids.push_back(static_cast<int32_t>(i * 7919 % 129280));
  return contents;
}

// -------------------------------------------------------------------------------- editing a snapshot behind
// its back

size_t TableAt(uint32_t section) { return sizeof(SnapshotPreamble) + section * sizeof(SnapshotTableEntry); }

template <typename T>
T Peek(const Bytes& bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

template <typename T>
void Poke(Bytes& bytes, size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

size_t PayloadAt(const Bytes& bytes, uint32_t section) {
  size_t at = TableAt(kSnapshotSections);
  for (uint32_t i = 0; i < section; ++i) at += Peek<uint64_t>(bytes, TableAt(i));
  return at;
}

/// Makes length and checksums true again, so that only the meaning of an edited field is left to refuse.
Bytes Resealed(Bytes bytes) {
  Poke<uint64_t>(bytes, offsetof(SnapshotPreamble, bytes), bytes.size());
  for (uint32_t i = 0; i < kSnapshotSections; ++i) {
    const std::span payload =
        std::span(bytes).subspan(PayloadAt(bytes, i), Peek<uint64_t>(bytes, TableAt(i)));
    Poke<uint64_t>(bytes, TableAt(i) + 8, SnapshotChecksum(payload, i));
  }
  const std::span before = std::span(bytes).first(bytes.size() - 8);
  Poke<uint64_t>(bytes, bytes.size() - 8, KvChecksum(before));
  return bytes;
}

template <typename T>
Bytes With(Bytes bytes, SnapshotSection section, size_t offset, T value) {
  Poke(bytes, PayloadAt(bytes, static_cast<uint32_t>(section)) + offset, value);
  return Resealed(std::move(bytes));
}

/// The snapshot with `count` more bytes (less if negative) at the end of a section.
Bytes Resized(Bytes bytes, uint32_t section, int count) {
  const auto end = bytes.begin() + static_cast<int64_t>(PayloadAt(bytes, section + 1));
  if (count < 0) {
    bytes.erase(end + count, end);
  } else {
    bytes.insert(end, count, std::byte{0});
  }
  Poke<uint64_t>(bytes, TableAt(section), Peek<uint64_t>(bytes, TableAt(section)) + count);
  return Resealed(std::move(bytes));
}

class SnapshotTest : public ::testing::Test {
 protected:
  SnapshotTest() : target_(*pools_.Reserve(kCapacity)) {
    FillWithNoise(target_, 2);
    target_.SetTokens(5);
    untouched_ = AllMemory(target_);
  }
  SequenceKv Filled(int64_t tokens) {
    SequenceKv kv = *pools_.Reserve(kCapacity);
    FillWithNoise(kv, 1);
    kv.SetTokens(tokens);
    return kv;
  }
  Bytes Written(int64_t tokens) { return *WriteSnapshot(Filled(tokens), kCompat, ContentsOf(tokens)); }

  /// Expects a refusal with this code and text, and that the sequence read into keeps every byte.
  void ExpectRefused(const Bytes& bytes, StatusCode code, const std::string& text) {
    const auto read = ReadSnapshot(bytes, kCompat, &target_);
    ASSERT_FALSE(read.ok()) << text;
    EXPECT_EQ(read.status().code(), code) << read.status();
    EXPECT_THAT(StatusMessage(read.status()), HasSubstr(text));
    EXPECT_EQ(target_.tokens(), 5);
    ASSERT_EQ(0, std::memcmp(AllMemory(target_).data(), untouched_.data(), untouched_.size())) << text;
  }

  BlockPools pools_{KvLayout(Shape()), 4, 4 * kCapacity};
  SequenceKv target_;
  Bytes untouched_;
};

TEST_F(SnapshotTest, WhatIsWrittenComesBack) {
  for (int64_t n : {1, 3, 4, 5, 9, 15, 16, 17, 127, 128, 129, 200, 256}) {
    SequenceKv source = Filled(n), target = *pools_.Reserve(kCapacity);
    FillWithNoise(target, 2);
    const SnapshotContents contents = ContentsOf(n);
    const Bytes bytes = *WriteSnapshot(source, kCompat, contents);
    const auto read = ReadSnapshot(bytes, kCompat, &target);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(target.tokens(), n);
    EXPECT_EQ(read->ids, contents.ids);
    EXPECT_EQ(read->logits, contents.logits);
    EXPECT_EQ(read->sampler, contents.sampler);
    EXPECT_EQ(HandOffBytes(source), HandOffBytes(target));
    EXPECT_EQ(*WriteSnapshot(target, kCompat, *read), bytes);
  }
}

TEST_F(SnapshotTest, LogitsAndSamplerAreOptional) {
  const Bytes bytes = *WriteSnapshot(Filled(9), kCompat, {ContentsOf(9).ids, {}, {}});
  SequenceKv target = *pools_.Reserve(9);
  const auto read = ReadSnapshot(bytes, kCompat, &target);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->logits.empty() && read->sampler.empty());
}

/// Rows do not depend on the room for draft tokens: a snapshot moves between workers that speculate and
/// others.
TEST_F(SnapshotTest, RoomForDraftsDoesNotMatter) {
  BlockPools speculating{KvLayout(Shape(), 5), 2, 2 * kCapacity};
  for (int64_t n : {9, 100, 131}) {
    SequenceKv source = Filled(n), target = *speculating.Reserve(kCapacity),
               back = *pools_.Reserve(kCapacity);
    const Bytes bytes = *WriteSnapshot(source, kCompat, ContentsOf(n));
    ASSERT_TRUE(ReadSnapshot(bytes, kCompat, &target).ok());
    EXPECT_EQ(*WriteSnapshot(target, kCompat, ContentsOf(n)), bytes);
  }
}

TEST_F(SnapshotTest, EveryFlippedByteIsRefused) {
  const Bytes good = Written(9);
  SequenceKv target = *pools_.Reserve(kCapacity);
  target.SetTokens(5);
  const Bytes before = AllMemory(target);
  for (size_t at = 0; at < good.size(); ++at)
    for (int mask : {0x01, 0x80, 0xff}) {
      Bytes bad = good;
      bad[at] ^= static_cast<std::byte>(mask);
      const auto read = ReadSnapshot(bad, kCompat, &target);
      ASSERT_FALSE(read.ok()) << "byte " << at << " of " << good.size();
      const bool version = at >= 8 && at < 12;
      ASSERT_EQ(read.status().code(), version ? StatusCode::kFailedPrecondition : StatusCode::kDataLoss)
          << at << ": " << read.status();
    }
  EXPECT_EQ(target.tokens(), 5);
  EXPECT_EQ(AllMemory(target), before);
}

TEST_F(SnapshotTest, DamageIsNamed) {
  const Bytes good = Written(9);
  const auto flipped = [&](uint32_t section) {
    Bytes bad = good;
    bad[PayloadAt(bad, section)] ^= std::byte{4};
    return bad;
  };
  const char* names[kSnapshotSections] = {"header",
                                          "counts",
                                          "token ids",
                                          "rows of swa_kv",
                                          "rows of csa_kv",
                                          "rows of indexer_kv",
                                          "rows of hca_kv",
                                          "rows of csa_state",
                                          "rows of indexer_state",
                                          "rows of hca_state",
                                          "logits",
                                          "sampler state"};
  for (uint32_t i = 0; i < kSnapshotSections; ++i)
    if (Peek<uint64_t>(good, TableAt(i)) > 0)
      ExpectRefused(flipped(i), StatusCode::kDataLoss, std::string(names[i]) + ": wrong checksum");
  Bytes bad = good;
  bad.back() ^= std::byte{1};
  ExpectRefused(bad, StatusCode::kDataLoss, "checksum over the whole");
  bad = good;
  bad[0] ^= std::byte{1};
  ExpectRefused(bad, StatusCode::kDataLoss, "magic");
  // Two sections of equal size may not change places: their checksums are seeded.
  bad = good;
  Poke(bad, TableAt(0) + 8,
       SnapshotChecksum({good.data() + PayloadAt(good, 0), Peek<uint64_t>(good, TableAt(0))}, 1));
  ExpectRefused(bad, StatusCode::kDataLoss, "header: wrong checksum");
}

TEST_F(SnapshotTest, EveryTruncationIsRefused) {
  const Bytes good = Written(9);
  SequenceKv target = *pools_.Reserve(kCapacity);
  for (size_t size = 0; size < good.size(); ++size) {
    // Also with a preamble that agrees with the shorter length.
    Bytes bad(good.begin(), good.begin() + static_cast<int64_t>(size));
    ASSERT_EQ(ReadSnapshot(bad, kCompat, &target).status().code(), StatusCode::kDataLoss) << size;
    if (size < sizeof(SnapshotPreamble)) continue;
    Poke<uint64_t>(bad, offsetof(SnapshotPreamble, bytes), size);
    ASSERT_EQ(ReadSnapshot(bad, kCompat, &target).status().code(), StatusCode::kDataLoss) << size;
  }
  EXPECT_EQ(target.tokens(), 0);
  Bytes longer = good;
  longer.push_back(std::byte{0});
  ExpectRefused(longer, StatusCode::kDataLoss, "length");
  Poke<uint64_t>(longer, offsetof(SnapshotPreamble, bytes), longer.size());
  ExpectRefused(longer, StatusCode::kDataLoss, "length of sampler state");
}

TEST_F(SnapshotTest, OtherVersionsAreRefused) {
  for (uint32_t version : {kSnapshotVersion + 1, kSnapshotVersion - 1}) {
    Bytes other = Written(9);
    Poke(other, offsetof(SnapshotPreamble, version), version);
    const std::string text = "version " + std::to_string(version) + "; this build reads version 1 only";
    ExpectRefused(Resealed(other), StatusCode::kFailedPrecondition, text);
    ExpectRefused(other, StatusCode::kFailedPrecondition, text);  // whatever its checksums look like
  }
  Bytes other = Written(9);
  Poke(other, offsetof(SnapshotPreamble, sections), kSnapshotSections + 1);
  ExpectRefused(Resealed(other), StatusCode::kDataLoss, "sections: 13, wanted 12");
}

TEST_F(SnapshotTest, EveryHeaderFieldIsNamed) {
  const Bytes good = Written(9);
  const auto header = SnapshotSection::kHeader;
  const size_t compat = 4, layout = compat + 4 + kCompat.size();
  const size_t type = layout + 4 + pools_.layout().Describe().size(), layers = type + 4 + 3;
  const size_t ratios = layers + 4, tokens = ratios + 4 * 2;
  const auto foreign = StatusCode::kFailedPrecondition, damaged = StatusCode::kDataLoss;
  ExpectRefused(With<uint32_t>(good, header, 0, 2), foreign, "state format 2, wanted 1");
  ExpectRefused(With(good, header, compat + 4, 'W'), foreign,
                "compat 'Weights 0011, exact', wanted 'weights 0011");
  ExpectRefused(With(good, header, layout + 4, 'S'), foreign, "layout 'Swa_kv:F32x8x4,ring 16;");
  ExpectRefused(With(good, header, type + 4, 'B'), foreign, "row type 'B32', wanted 'F32'");
  ExpectRefused(With<uint16_t>(good, header, ratios + 2, 128), foreign, "ratio of layer 1 128, wanted 4");
  ExpectRefused(With<uint16_t>(good, header, ratios + 4, 0), foreign, "ratio of layer 2 0, wanted 128");
  ExpectRefused(With<int64_t>(good, header, tokens, kCapacity + 1), foreign,
                "tokens: 257, the sequence has room for 256");
  ExpectRefused(With<int64_t>(good, header, tokens, INT64_MAX), foreign, "tokens: 9223372036854775807");
  ExpectRefused(With<int64_t>(good, header, tokens, 0), damaged, "tokens: 0");
  ExpectRefused(With<int64_t>(good, header, tokens, -1), damaged, "tokens: -1");
  ExpectRefused(With<int64_t>(good, header, tokens, 10), damaged, "counts: rows [0, +9) of pool 0");
  for (size_t length : {compat, layout, type, layers})
    ExpectRefused(With<uint32_t>(good, header, length, UINT32_MAX), damaged, "header: malformed");
  ExpectRefused(Resized(good, 0, 1), damaged, "header: malformed");
  ExpectRefused(Resized(good, 0, -1), damaged, "header: malformed");
}

/// Nothing in them is slack: with all checksums made right again, a changed byte is still refused.
TEST_F(SnapshotTest, EveryByteOfHeaderAndCountsHasAMeaning) {
  const Bytes good = Written(9);
  for (const SnapshotSection section : {SnapshotSection::kHeader, SnapshotSection::kCounts})
    for (size_t at = 0; at < Peek<uint64_t>(good, TableAt(static_cast<uint32_t>(section))); ++at)
      for (int mask : {0x01, 0x80, 0xff}) {
        const size_t from = PayloadAt(good, static_cast<uint32_t>(section)) + at;
        const auto byte = static_cast<uint8_t>(Peek<uint8_t>(good, from) ^ mask);
        const Bytes bad = With<uint8_t>(good, section, at, byte);
        ExpectRefused(bad, ReadSnapshot(bad, kCompat, &target_).status().code(), "KV snapshot: ");
      }
}

TEST_F(SnapshotTest, EveryOtherSectionIsChecked) {
  const Bytes good = Written(9);
  const auto counts = SnapshotSection::kCounts;
  const auto damaged = StatusCode::kDataLoss;
  ExpectRefused(With<uint32_t>(good, counts, 0, 3), damaged, "counts: 3 row ranges, wanted 13");
  ExpectRefused(With<uint16_t>(good, counts, 4, 3), damaged,
                "of pool 3, layer 1; wanted [0, +2) of csa_kv, layer 1");
  ExpectRefused(With<uint16_t>(good, counts, 6, 2), damaged, "layer 2; wanted");
  ExpectRefused(With<int64_t>(good, counts, 8, 1), damaged, "rows [1, +2)");
  ExpectRefused(With<int64_t>(good, counts, 16, -2), damaged, "rows [0, +-2)");
  ExpectRefused(Resized(good, static_cast<uint32_t>(counts), 4), damaged, "counts: malformed");
  ExpectRefused(Resized(good, static_cast<uint32_t>(SnapshotSection::kTokens), -4), damaged,
                "token ids: 32 bytes for 9");
  ExpectRefused(With<int32_t>(good, SnapshotSection::kTokens, 8, -3), damaged, "token ids: -3 at 2");
  for (int p = 0; p < kPoolCount; ++p)
    ExpectRefused(Resized(good, static_cast<uint32_t>(SnapshotSection::kRows) + p, 32), damaged,
                  "rows of " + std::string(PoolName(static_cast<PoolTag>(p))) + ":");
  ExpectRefused(Resized(good, static_cast<uint32_t>(SnapshotSection::kLogits), 2), damaged,
                "logits: 14 bytes");
}

TEST_F(SnapshotTest, OtherModelsAreRefused) {
  const Bytes good = Written(9);
  const auto refused = [&](KvModelShape shape, const std::string& text) {
    BlockPools pools{KvLayout(shape), 1, kCapacity};
    SequenceKv kv = *pools.Reserve(kCapacity);
    const Status status = ReadSnapshot(good, kCompat, &kv).status();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(StatusMessage(status), HasSubstr(text));
  };
  KvModelShape shape = Shape();
  shape.kv_type = DType::kBF16;
  refused(shape, "row type 'F32', wanted 'BF16'");
  shape = Shape();
  shape.sliding_window = 32;
  refused(shape, "layout");
  shape = Shape();
  shape.layers.pop_back();
  refused(shape, "layers 4, wanted 3");
  shape = Shape();
  shape.layers[0] = kHca;
  refused(shape, "ratio of layer 0 0, wanted 128");
  SequenceKv kv = *pools_.Reserve(kCapacity);
  EXPECT_THAT(StatusMessage(ReadSnapshot(good, "weights 0012, exact", &kv).status()),
              HasSubstr("compat 'weights 0011, exact', wanted 'weights 0012, exact'"));
}

TEST_F(SnapshotTest, OnlyWholeSequencesAreWritten) {
  SequenceKv kv = *pools_.Reserve(kCapacity);
  EXPECT_EQ(WriteSnapshot(kv, kCompat, {}).status().code(), StatusCode::kFailedPrecondition);
  kv.SetTokens(9);
  kv.BeginWrite(1);  // a step of one token failed: its slot held nothing that is still needed
  EXPECT_TRUE(WriteSnapshot(kv, kCompat, ContentsOf(9)).ok());
  kv.BeginWrite(2);
  const Status status = WriteSnapshot(kv, kCompat, ContentsOf(9)).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(StatusMessage(status), HasSubstr("failed step"));
}

// ------------------------------------------------------------------------------------------------------------
// golden

/// tiny after 131 and after 132 tokens: token 131 closes a CSA window whose rows come from the snapshot,
/// selects among 33 entries with index_topk 8, and reads one HCA entry.
class Golden : public ::testing::Test {
 protected:
  static constexpr int64_t kFirst = 131, kRoom = 256;
  static constexpr std::string_view kGoldenCompat = "golden tiny exact";
  static std::string Path(int64_t n) {
    return std::string(CACHALOT_SOURCE_DIR "/tests/golden/kv/tiny-exact-") + std::to_string(n) + ".snap";
  }
  static Bytes Stored(int64_t n) {
    std::ifstream in(Path(n), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    const auto bytes = std::as_bytes(std::span(text));
    return {bytes.begin(), bytes.end()};
  }
  static Bytes SnapshotOf(const SequenceKv& kv, std::span<const int32_t> ids, std::span<const float> logits) {
    return *WriteSnapshot(
        kv, kGoldenCompat,
        {{ids.begin(), ids.end()}, {logits.begin(), logits.end()}, {std::byte{1}, std::byte{2}}});
  }

  void SetUp() override {
    if (!kernels::CpuKernels()) GTEST_SKIP() << "the cpu back end does not run here";
    engine_ = std::make_unique<testing::TestEngine>(CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny",
                                                    *kernels::CpuKernels());
  }
  std::unique_ptr<testing::TestEngine> engine_;
};

TEST_F(Golden, ContinuesWithTheStoredBits) {
  const Bytes now = Stored(kFirst), next = Stored(kFirst + 1);
  SequenceKv kv = engine_->NewSequence(kRoom), reference = engine_->NewSequence(kRoom);
  FillWithNoise(kv, 3);
  const auto after = ReadSnapshot(next, kGoldenCompat, &reference);
  ASSERT_TRUE(after.ok()) << after.status();
  const auto read = ReadSnapshot(now, kGoldenCompat, &kv);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->ids, std::vector<int32_t>(after->ids.begin(), after->ids.end() - 1));
  EXPECT_EQ(engine_->Run(kv, std::span(after->ids).last(1), 1), after->logits);
  EXPECT_EQ(SnapshotOf(kv, after->ids, after->logits), next);
}

TEST_F(Golden, IsWhatThisBuildWrites) {
  const Bytes stored = Stored(kFirst);
  SequenceKv kv = engine_->NewSequence(kRoom);
  const auto read = ReadSnapshot(stored, kGoldenCompat, &kv);
  ASSERT_TRUE(read.ok()) << read.status();
  kv.Reset();
  const auto logits = engine_->Run(kv, read->ids, kFirst);
  EXPECT_EQ(SnapshotOf(kv, read->ids, std::span(logits).last(engine_->config().vocab_size)), stored);
}

/// Makes the files: tests/golden/kv/README.md.
TEST_F(Golden, DISABLED_Write) {
  std::mt19937 rng(20);
  std::vector<int32_t> ids(kFirst + 1);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % engine_->config().vocab_size);
  SequenceKv kv = engine_->NewSequence(kRoom);
  auto logits = engine_->Run(kv, std::span(ids).first(kFirst - 1), kFirst - 1);
  for (int64_t n : {kFirst, kFirst + 1}) {
    logits = engine_->Run(kv, std::span(ids).subspan(n - 1, 1), 1);
    const Bytes bytes = SnapshotOf(kv, std::span(ids).first(n), logits);
    std::ofstream(Path(n), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
}

}  // namespace
}  // namespace cachalot

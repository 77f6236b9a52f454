#include "common/kv/transfer_frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>

namespace cachalot {
namespace {

using testing::HasSubstr;
using Frame = std::vector<std::byte>;

/// A sender's KV of `kTokens` tokens with a value of its own in every float, and an empty one to receive it.
class TransferTest : public testing::Test {
 protected:
  static constexpr int64_t kTokens = 301, kMaxTokens = 400;
  static constexpr uint64_t kLease = 5, kEpoch = 6;

  void SetUp() override {
    float next = 1;
    for (const RowRange& range : HandOffRows(layout(), kTokens))
      for (int64_t r = 0; r < range.count; ++r)
        for (int i = 0; i < layout().pool(range.pool).row_values; ++i)
          source_.Row(range.pool, range.layer, range.first + r)[i] = next++;
    source_.SetTokens(kTokens);
  }

  const KvLayout& layout() const { return pools_.layout(); }
  Frame Rows(const RowRange& range) const { return EncodeRows(source_, range, kLease, kEpoch, 1); }
  /// The whole hand-off in frames of at most `most` rows.
  std::vector<Frame> AllRows(int64_t most = 7) const {
    std::vector<Frame> frames;
    for (RowRange range : HandOffRows(layout(), kTokens))
      for (; range.count > 0; range.first += most, range.count -= most)
        frames.push_back(Rows({range.pool, range.layer, range.first, std::min(range.count, most)}));
    return frames;
  }
  static KvCommit CommitOf(const std::vector<Frame>& frames) {
    KvCommit commit{kTokens, 42, 0, {}};
    for (const Frame& frame : frames) commit.tally.Add(ParseKvFrame(frame)->header);
    return commit;
  }
  Status Place(const Frame& frame) {
    const auto view = ParseKvFrame(frame);
    EXPECT_TRUE(view.ok()) << view.status();
    return receiver_.Place(*view);
  }
  void PlaceAll(const std::vector<Frame>& frames) {
    for (const Frame& frame : frames) EXPECT_TRUE(Place(frame).ok());
  }
  void ExpectSameRows() const {
    for (const RowRange& range : HandOffRows(layout(), kTokens))
      for (int64_t r = range.first; r < range.first + range.count; ++r)
        EXPECT_EQ(
            0, std::memcmp(source_.Row(range.pool, range.layer, r), target_.Row(range.pool, range.layer, r),
                           layout().pool(range.pool).row_values * sizeof(float)));
  }

  BlockPools pools_{
      KvLayout({{KvLayerKind::kWindow, KvLayerKind::kCsa, KvLayerKind::kHca, KvLayerKind::kCsa}, 8, 4, 16}),
      4, 4096};
  SequenceKv source_ = *pools_.Reserve(kMaxTokens), target_ = *pools_.Reserve(kMaxTokens);
  KvReceiver receiver_{&target_, kMaxTokens};
};

TEST_F(TransferTest, AHandOffArrivesWhole) {
  for (int64_t most : {1, 7, 1000}) {
    const auto frames = AllRows(most);
    receiver_.Restart();
    PlaceAll(frames);
    EXPECT_EQ(target_.tokens(), 0);
    EXPECT_TRUE(receiver_.Commit(CommitOf(frames)).ok());
    EXPECT_EQ(target_.tokens(), kTokens);
    ExpectSameRows();
  }
}

TEST_F(TransferTest, PoolsMayComeInAnyOrderAndInterleaved) {
  auto frames = AllRows(11);
  std::stable_sort(frames.begin(), frames.end(), [](const Frame& a, const Frame& b) {
    return ParseKvFrame(a)->header.first_row < ParseKvFrame(b)->header.first_row;
  });
  PlaceAll(frames);
  EXPECT_TRUE(receiver_.Commit(CommitOf(frames)).ok());
  ExpectSameRows();
}

TEST_F(TransferTest, EveryCorruptByteOfAFrameIsRefused) {
  for (const Frame& good :
       {Rows({PoolTag::kCsaKv, 1, 3, 5}), EncodeCommit(CommitOf(AllRows()), kLease, kEpoch, 1),
        EncodeVerdict(Aborted("no"), kLease, kEpoch, 1)}) {
    ASSERT_TRUE(ParseKvFrame(good).ok());
    for (size_t i = 0; i < good.size(); ++i)
      for (const std::byte bit : {std::byte{1}, std::byte{128}}) {
        Frame bad = good;
        bad[i] ^= bit;
        EXPECT_EQ(ParseKvFrame(bad).status().code(), StatusCode::kDataLoss) << "byte " << i;
      }
    for (size_t size = 0; size < good.size(); ++size)
      EXPECT_EQ(ParseKvFrame(std::span(good).first(size)).status().code(), StatusCode::kDataLoss) << size;
    Frame longer = good;
    longer.push_back({});
    EXPECT_EQ(ParseKvFrame(longer).status().code(), StatusCode::kDataLoss);
  }
}

TEST_F(TransferTest, RefusalsSayWhatIsWrong) {
  const auto message = [](Frame frame, size_t byte) {
    frame[byte] ^= std::byte{1};
    return StatusMessage(ParseKvFrame(frame).status());
  };
  const Frame frame = Rows({PoolTag::kCsaKv, 1, 3, 5});
  EXPECT_THAT(message(frame, offsetof(KvFrameHeader, magic)), HasSubstr("magic"));
  EXPECT_THAT(message(frame, offsetof(KvFrameHeader, version)), HasSubstr("version"));
  EXPECT_THAT(message(frame, offsetof(KvFrameHeader, first_row)), HasSubstr("header"));
  EXPECT_THAT(message(frame, sizeof(KvFrameHeader)), HasSubstr("checksum"));
}

TEST_F(TransferTest, RowsMustLieInTheLeaseAndHaveItsWidth) {
  const auto place = [&](const std::function<void(KvFrameView&)>& change) {
    const Frame frame = Rows({PoolTag::kCsaKv, 1, 0, 5});
    KvFrameView view = *ParseKvFrame(frame);
    change(view);
    return receiver_.Place(view).code();
  };
  const auto kRefused = StatusCode::kDataLoss;
  EXPECT_EQ(place([](auto& view) { view.header.pool = static_cast<PoolTag>(7); }), kRefused);
  EXPECT_EQ(place([](auto& view) { view.header.pool = PoolTag::kIndexerKv; }),
            kRefused);                                                    // rows of another width
  EXPECT_EQ(place([](auto& view) { view.header.layer = 2; }), kRefused);  // not in this pool
  EXPECT_EQ(place([](auto& view) { view.header.layer = 4; }), kRefused);  // not in the model
  EXPECT_EQ(place([](auto& view) { view.header.first_row = -1; }), kRefused);
  EXPECT_EQ(place([](auto& view) { view.header.first_row = kMaxTokens / 4 - 4; }), kRefused);
  EXPECT_EQ(place([](auto& view) { view.header.rows = 0; }), kRefused);
  EXPECT_EQ(place([](auto& view) { view.header.rows = 4; }), kRefused);
  EXPECT_EQ(place([](auto& view) { view.header.rows = UINT32_MAX; }), kRefused);
  EXPECT_EQ(place([](auto& view) { view.payload = view.payload.first(8); }), kRefused);
  EXPECT_EQ(place([](auto&) {}), StatusCode::kOk);
}

TEST_F(TransferTest, RowsOfALayerMustFollowEachOther) {
  EXPECT_TRUE(Place(Rows({PoolTag::kCsaKv, 1, 0, 5})).ok());
  EXPECT_EQ(Place(Rows({PoolTag::kCsaKv, 1, 0, 5})).code(), StatusCode::kDataLoss);  // twice
  EXPECT_EQ(Place(Rows({PoolTag::kCsaKv, 1, 4, 5})).code(), StatusCode::kDataLoss);  // overlap
  const Status gap = Place(Rows({PoolTag::kCsaKv, 1, 6, 5}));
  EXPECT_EQ(gap.code(), StatusCode::kDataLoss);
  EXPECT_THAT(StatusMessage(gap), HasSubstr("csa_kv of layer 1: got row 6, wanted row 5"));
  EXPECT_TRUE(Place(Rows({PoolTag::kCsaKv, 1, 5, 5})).ok());
  EXPECT_TRUE(Place(Rows({PoolTag::kCsaKv, 3, 0, 5})).ok());  // another layer counts for itself
}

TEST_F(TransferTest, EveryMissingFrameIsNoticed) {
  const auto frames = AllRows(1000);  // one a pool and layer
  const KvCommit commit = CommitOf(frames);
  for (size_t missing = 0; missing < frames.size(); ++missing) {
    receiver_.Restart();
    for (size_t i = 0; i < frames.size(); ++i) {
      if (i == missing) continue;
      EXPECT_TRUE(Place(frames[i]).ok());
    }
    EXPECT_EQ(receiver_.Commit(commit).code(), StatusCode::kDataLoss) << missing;
    EXPECT_EQ(target_.tokens(), 0);
  }
}

TEST_F(TransferTest, MoreRowsThanWantedAreNoticed) {
  const auto frames = AllRows();
  const KvCommit commit = CommitOf(frames);
  PlaceAll(frames);
  EXPECT_TRUE(Place(Rows({PoolTag::kCsaKv, 1, kTokens / 4, 1})).ok());
  EXPECT_EQ(receiver_.Commit(commit).code(), StatusCode::kDataLoss);
}

TEST_F(TransferTest, EveryFieldOfACommitIsChecked) {
  const auto frames = AllRows();
  const KvCommit good = CommitOf(frames);
  const std::vector<std::function<void(KvCommit&)>> changes = {
      [](KvCommit& c) { c.tokens = 0; },
      [](KvCommit& c) { c.tokens = -1; },
      [](KvCommit& c) { --c.tokens; },
      [](KvCommit& c) { ++c.tokens; },
      [](KvCommit& c) { c.tokens = kMaxTokens + 1; },
      [](KvCommit& c) { ++c.tally.checksum; },
      [](KvCommit& c) { ++c.tally.entries[1].rows; },
      [](KvCommit& c) { c.tally.entries[1].layer = 3; },
      [](KvCommit& c) { c.tally.entries[1].pool = PoolTag::kHcaState; },
      [](KvCommit& c) { c.tally.entries.pop_back(); },
      [](KvCommit& c) {
        c.tally.entries.push_back({PoolTag::kHcaState, 2, 1});
      },
  };
  PlaceAll(frames);
  for (size_t i = 0; i < changes.size(); ++i) {
    KvCommit bad = good;
    changes[i](bad);
    EXPECT_EQ(receiver_.Commit(bad).code(), StatusCode::kDataLoss) << i;
  }
  EXPECT_TRUE(receiver_.Commit(good).ok());
}

TEST_F(TransferTest, TheTallySeesWhatFramesHold) {
  auto frames = AllRows();
  const KvTally tally = CommitOf(frames).tally;
  std::reverse(frames.begin(), frames.end());
  EXPECT_EQ(CommitOf(frames).tally, tally);  // in any order
  *source_.Row(PoolTag::kHcaKv, 2, 0) += 1;
  EXPECT_NE(CommitOf(AllRows()).tally, tally);
}

TEST_F(TransferTest, ARestartForgetsEverything) {
  PlaceAll(AllRows());
  receiver_.Restart();
  EXPECT_EQ(receiver_.Commit(CommitOf(AllRows())).code(), StatusCode::kDataLoss);
  const auto frames = AllRows(5);
  PlaceAll(frames);
  EXPECT_TRUE(receiver_.Commit(CommitOf(frames)).ok());
}

TEST_F(TransferTest, CommitsAndVerdictsGoThereAndBack) {
  KvCommit commit = CommitOf(AllRows());
  commit.first_index = 17;
  const Frame frame = EncodeCommit(commit, kLease, kEpoch, 9);
  const auto view = ParseKvFrame(frame);
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view->header.kind, KvFrameKind::kCommit);
  EXPECT_EQ(view->header.lease, kLease);
  EXPECT_EQ(view->header.epoch, kEpoch);
  EXPECT_EQ(view->header.attempt, 9u);
  const auto back = DecodeCommit(view->payload);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->tokens, commit.tokens);
  EXPECT_EQ(back->first_token, commit.first_token);
  EXPECT_EQ(back->first_index, 17);
  EXPECT_EQ(back->tally, commit.tally);
  EXPECT_EQ(DecodeCommit(view->payload.first(view->payload.size() - 1)).status().code(),
            StatusCode::kDataLoss);
  EXPECT_EQ(DecodeCommit({}).status().code(), StatusCode::kDataLoss);

  for (const Status& verdict : {OkStatus(), Aborted("attempt 1 was replaced"), DataLoss("")}) {
    const Frame answer = EncodeVerdict(verdict, kLease, kEpoch, 9);
    EXPECT_EQ(DecodeVerdict(ParseKvFrame(answer)->payload), verdict);
  }
  EXPECT_EQ(DecodeVerdict({}).code(), StatusCode::kDataLoss);
  const int32_t unknown = 17;
  EXPECT_EQ(DecodeVerdict(std::as_bytes(std::span(&unknown, 1))).code(), StatusCode::kDataLoss);
}

TEST_F(TransferTest, ACommitOfUnknownPoolsIsMalformed) {
  KvCommit commit = CommitOf(AllRows());
  const Frame frame = EncodeCommit(commit, kLease, kEpoch, 1);
  Frame payload(frame.begin() + sizeof(KvFrameHeader), frame.end());
  payload[32 + 1] = std::byte{1};  // the high byte of the first entry's pool
  EXPECT_EQ(DecodeCommit(payload).status().code(), StatusCode::kDataLoss);
}

}  // namespace
}  // namespace cachalot

// Decisions of the prefix cache, without rows.

#include "common/kv/prefix_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace cachalot {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Ids = std::vector<int32_t>;

constexpr int64_t kBlock = PrefixIndex::kBlockTokens;
constexpr int64_t kBlockBytes = 100, kSnapshotBytes = 600;
const PrefixKey kRoot = PrefixIndex::Root("weights");

/// Blocks whose tokens follow from their letters: "aab" begins as "aac" does.
Ids Tokens(const std::string& blocks, int64_t more = 0) {
  Ids ids;
  for (const char block : blocks)
    for (int64_t i = 0; i < kBlock; ++i) ids.push_back(static_cast<int32_t>(block * 1000 + i));
  for (int64_t i = 0; i < more; ++i) ids.push_back(7);
  return ids;
}

PrefixIndex::Options Room(int64_t blocks, int64_t snapshots) {
  return {.block_bytes = kBlockBytes,
          .max_bytes = blocks * kBlockBytes + snapshots * kSnapshotBytes,
          .max_snapshot_bytes = snapshots * kSnapshotBytes};
}

class PrefixIndexTest : public ::testing::Test {
 protected:
  PrefixIndex::Change Insert(const std::string& blocks) {
    auto change = index_.Insert(kRoot, Tokens(blocks), kSnapshotBytes);
    index_.CheckConsistent();
    return change;
  }
  PrefixIndex::Match Find(const std::string& blocks, int64_t more = 1) {
    const Ids ids = Tokens(blocks, more);
    return index_.Find(kRoot, ids, static_cast<int64_t>(ids.size()) - 1);
  }
  /// Tokens at which a prompt of these blocks would go on.
  int64_t Start(const std::string& blocks, int64_t more = 1) { return Find(blocks, more).snapshot; }

  PrefixIndex index_{Room(1000, 100)};
};

TEST_F(PrefixIndexTest, FindsTheLongestSnapshotWhoseBlocksAreThere) {
  EXPECT_EQ(Start("abc"), 0);
  EXPECT_EQ(Insert("ab").added.size(), 2u);
  EXPECT_EQ(Insert("abcd").added.size(), 2u);
  EXPECT_EQ(index_.blocks(), 4);
  EXPECT_EQ(Start("a"), 0) << "there is no snapshot at its end";
  EXPECT_EQ(Start("ab"), 2 * kBlock);
  EXPECT_EQ(Start("abc"), 2 * kBlock);
  EXPECT_EQ(Start("abcd"), 4 * kBlock);
  EXPECT_EQ(Start("abcdefg"), 4 * kBlock);
  EXPECT_EQ(Start("abd"), 2 * kBlock);
  EXPECT_EQ(Start("bcd"), 0) << "blocks count at their place only";
  EXPECT_EQ(Find("abcx").blocks, 3 * kBlock);
}

TEST_F(PrefixIndexTest, NeverCoversTheLastToken) {
  Insert("ab");
  Insert("a");
  EXPECT_EQ(Start("ab", 0), kBlock) << "the logits of the last token are wanted";
  EXPECT_EQ(Start("a", 0), 0);
  EXPECT_EQ(Start("ab", 1), 2 * kBlock);
  EXPECT_EQ(index_.Find(kRoot, Ids(), -1).snapshot, 0);
  EXPECT_EQ(index_.Find(kRoot, Tokens("", 127), 126).blocks, 0);
}

TEST_F(PrefixIndexTest, AnotherSaltNeverMatches) {
  Insert("ab");
  for (const char* salt : {"", "weight", "weights ", "weights\nexact"})
    EXPECT_EQ(index_.Find(PrefixIndex::Root(salt), Tokens("abc"), 383).blocks, 0) << salt;
  // Two salts beside each other.
  const PrefixKey other = PrefixIndex::Root("other");
  EXPECT_EQ(index_.Insert(other, Tokens("ab"), kSnapshotBytes).added.size(), 2u);
  index_.CheckConsistent();
  EXPECT_NE(index_.Find(other, Tokens("abc"), 383).node, Find("ab").node);
}

TEST_F(PrefixIndexTest, InsertAddsOnlyWhatIsMissing) {
  const auto first = Insert("abc");
  EXPECT_THAT(first.added, ElementsAre(0, 1, 2));
  EXPECT_EQ(first.snapshot, 2);
  const auto again = Insert("abc");
  EXPECT_THAT(again.added, IsEmpty());
  EXPECT_EQ(again.snapshot, PrefixIndex::kNone);
  const auto inside = Insert("ab");
  EXPECT_THAT(inside.added, IsEmpty());
  EXPECT_EQ(inside.snapshot, 1);
  const auto branch = Insert("abx");
  EXPECT_THAT(branch.added, ElementsAre(3));
  EXPECT_EQ(index_.parent(3), 1);
  EXPECT_EQ(index_.bytes(), 4 * kBlockBytes + 3 * kSnapshotBytes);
}

PrefixKey OneKeyForAll(const PrefixKey&, std::span<const int32_t>) { return {1, 2}; }
PrefixKey KeyOfFirstToken(const PrefixKey&, std::span<const int32_t> tokens) {
  return {static_cast<uint64_t>(tokens[0]), 0};
}

TEST(PrefixIndexCollisions, CostAMissAndNothingElse) {
  auto options = Room(1000, 100);
  options.hash = OneKeyForAll;
  PrefixIndex index(options);
  EXPECT_EQ(index.Insert(kRoot, Tokens("a"), kSnapshotBytes).added.size(), 1u);
  EXPECT_EQ(index.Find(kRoot, Tokens("b", 1), 128).blocks, 0);
  EXPECT_EQ(index.Find(kRoot, Tokens("aa", 1), 256).blocks, kBlock)
      << "not the first block at the second's place";
  EXPECT_EQ(index.Insert(kRoot, Tokens("b"), kSnapshotBytes).snapshot, PrefixIndex::kNone);
  EXPECT_EQ(index.Insert(kRoot, Tokens("aa"), kSnapshotBytes).snapshot, PrefixIndex::kNone);
  EXPECT_EQ(index.Find(PrefixIndex::Root("other"), Tokens("a", 1), 128).blocks, 0);
  index.CheckConsistent();
}

TEST(PrefixIndexCollisions, OfOneBlockInOtherSurroundings) {
  auto options = Room(1000, 100);
  options.hash = KeyOfFirstToken;  // as if "xb" and "ab" had one key
  PrefixIndex index(options);
  index.Insert(kRoot, Tokens("ab"), kSnapshotBytes);
  EXPECT_EQ(index.Insert(kRoot, Tokens("xb"), kSnapshotBytes).snapshot, PrefixIndex::kNone);
  EXPECT_EQ(index.Insert(kRoot, Tokens("x"), kSnapshotBytes).added.size(), 1u);
  const auto match = index.Find(kRoot, Tokens("xb", 1), 256);
  EXPECT_EQ(match.blocks, kBlock) << "the block behind another beginning is not this one";
  EXPECT_EQ(match.snapshot, kBlock);
  Ids differs = Tokens("ab", 1);
  differs[200] = 0;  // the same key, another token
  EXPECT_EQ(index.Find(kRoot, differs, 256).blocks, kBlock);
  index.CheckConsistent();
}

TEST(PrefixCost, GrowsWithThePosition) {
  EXPECT_EQ(PrefillCost(0), 0);
  double last = 0;
  for (int64_t at = 0; at < 1'000'000; at += 4096) {
    const double piece = PrefillCost(at + 4096) - PrefillCost(at);
    EXPECT_GT(piece, last);
    last = piece;
  }
}

TEST(PrefixCost, OfAByteFallsWithAgeAndSizeAndRisesWithWhatIsSaved) {
  EXPECT_EQ(KeepValue(0, 128, 100, 1), KeepValue(0, 128, 100, 0) / 2);
  EXPECT_LT(KeepValue(0, 128, 200, 0), KeepValue(0, 128, 100, 0));
  EXPECT_LT(KeepValue(0, 128, 100, 0), KeepValue(0, 256, 100, 0));
  EXPECT_LT(KeepValue(128, 256, 100, 0), KeepValue(0, 256, 100, 0));
  EXPECT_LT(KeepValue(0, 128, 100, 0), KeepValue(100'000, 100'128, 100, 0)) << "late tokens cost more";
}

TEST(PrefixEviction, FreesALeafWithTheBlocksThatOnlyItNeeded) {
  PrefixIndex index(Room(6, 2));
  const auto insert = [&](const std::string& blocks) {
    auto change = index.Insert(kRoot, Tokens(blocks), kSnapshotBytes);
    index.CheckConsistent();
    return change;
  };
  insert("abc");                     // 0 1 2
  insert("abde");                    // 3 4
  const auto change = insert("xy");  // no room for a third snapshot: "abc" is older and saves less
  EXPECT_THAT(change.freed_snapshots, ElementsAre(2));
  EXPECT_THAT(change.freed_blocks, ElementsAre(2)) << "not the two that the other needs";
  EXPECT_EQ(index.Find(kRoot, Tokens("abde", 1), 512).snapshot, 4 * kBlock);
  EXPECT_EQ(index.blocks(), 6);
}

/// Room for any blocks, and for so many bytes of snapshots. In the tests below the least recently used is never the one
/// that goes.
struct SnapshotRoom {
  explicit SnapshotRoom(int64_t bytes)
      : index({.block_bytes = kBlockBytes, .max_bytes = 1 << 20, .max_snapshot_bytes = bytes}) {}

  PrefixIndex::Change Insert(const std::string& blocks, int64_t snapshot_bytes) {
    auto change = index.Insert(kRoot, Tokens(blocks), snapshot_bytes);
    index.CheckConsistent();
    return change;
  }
  /// The block at whose end the snapshot of these is; kNone: there is none.
  PrefixIndex::Id At(const std::string& blocks) const {
    const auto match = index.Find(kRoot, Tokens(blocks, 1), 1 << 20);
    return match.snapshot == std::ssize(blocks) * kBlock ? match.node : PrefixIndex::kNone;
  }

  PrefixIndex index;
};

TEST(PrefixEviction, WhatSavesLittleGoesBeforeWhatIsOlder) {
  SnapshotRoom room(1000);
  room.Insert("aaaaaaaa", 500);
  room.Insert("b", 500);
  const auto b = room.At("b");
  const auto change = room.Insert("c", 500);
  EXPECT_THAT(change.freed_snapshots, ElementsAre(b)) << "it saves one block, the older eight";
  EXPECT_THAT(change.freed_blocks, ElementsAre(b));
  EXPECT_NE(room.At("aaaaaaaa"), PrefixIndex::kNone);
}

TEST(PrefixEviction, WhatTakesManyBytesGoesBeforeWhatIsOlder) {
  SnapshotRoom room(1000);
  room.Insert("aa", 100);
  room.Insert("bb", 900);
  const auto bb = room.At("bb");
  EXPECT_THAT(room.Insert("cc", 100).freed_snapshots, ElementsAre(bb)) << "both save the same";
  EXPECT_NE(room.At("aa"), PrefixIndex::kNone);
}

TEST(PrefixEviction, SavedIsWhatFollowsTheSnapshotBefore) {
  SnapshotRoom room(1000);
  room.Insert("xxxxxx", 300);
  room.Insert("aaaa", 300);
  room.Insert("aaaab", 300);
  const auto leaf = room.At("aaaab");
  const auto change = room.Insert("c", 300);
  EXPECT_THAT(change.freed_snapshots, ElementsAre(leaf)) << "without it a prompt begins one block earlier only";
  EXPECT_THAT(change.freed_blocks, ElementsAre(leaf));
  EXPECT_NE(room.At("xxxxxx"), PrefixIndex::kNone);
  EXPECT_NE(room.At("aaaa"), PrefixIndex::kNone);
}

/// Snapshots are small beside blocks in these two.
TEST(PrefixEviction, OnlyBlocksThatWouldGoAlongAreAmongTheBytes) {
  SnapshotRoom room(30);
  room.Insert("aa", 10);
  room.Insert("aab", 10);
  room.index.Pin(room.At("aab"));
  room.Insert("cc", 10);
  const auto cc = room.At("cc");
  EXPECT_THAT(room.Insert("dd", 10).freed_snapshots, ElementsAre(cc)) << "\"aab\" needs the blocks of \"aa\"";
  EXPECT_NE(room.At("aa"), PrefixIndex::kNone);
}

TEST(PrefixEviction, BlocksThatTheNewPrefixNeedsAreNotAmongTheBytes) {
  SnapshotRoom room(20);
  room.Insert("aa", 10);
  room.Insert("bb", 10);
  const auto bb = room.At("bb");
  EXPECT_THAT(room.Insert("aac", 10).freed_snapshots, ElementsAre(bb)) << "\"aac\" needs the blocks of \"aa\"";
  EXPECT_NE(room.At("aa"), PrefixIndex::kNone);
}

TEST(PrefixEviction, UseKeepsAndPinsKeepAbsolutely) {
  PrefixIndex index(Room(100, 2));
  const auto start = [&](const std::string& blocks) { return index.Find(kRoot, Tokens(blocks, 1), 1 << 20); };
  index.Insert(kRoot, Tokens("aa"), kSnapshotBytes);
  index.Insert(kRoot, Tokens("bb"), kSnapshotBytes);
  for (int i = 0; i < 3; ++i) index.Touch(start("aa").node);
  index.Insert(kRoot, Tokens("cc"), kSnapshotBytes);
  EXPECT_EQ(start("aa").snapshot, 2 * kBlock) << "used more recently";
  EXPECT_EQ(start("bb").blocks, 0);
  const auto aa = start("aa").node, cc = start("cc").node;
  index.Pin(aa);
  index.Pin(cc);
  index.Pin(cc);
  EXPECT_EQ(index.Insert(kRoot, Tokens("dd"), kSnapshotBytes).snapshot, PrefixIndex::kNone);
  index.CheckConsistent();
  index.Unpin(cc);
  EXPECT_EQ(index.Insert(kRoot, Tokens("dd"), kSnapshotBytes).snapshot, PrefixIndex::kNone);
  index.Unpin(cc);
  EXPECT_EQ(index.Insert(kRoot, Tokens("dd"), kSnapshotBytes).freed_snapshots, std::vector{cc});
  EXPECT_EQ(start("aa").snapshot, 2 * kBlock);
  index.CheckConsistent();
}

TEST(PrefixEviction, APrefixThatGrowsMayDropTheSnapshotInsideItself) {
  PrefixIndex index(Room(100, 1));
  index.Insert(kRoot, Tokens("aa"), kSnapshotBytes);
  const auto change = index.Insert(kRoot, Tokens("aab"), kSnapshotBytes);
  EXPECT_THAT(change.freed_snapshots, ElementsAre(1));
  EXPECT_THAT(change.freed_blocks, IsEmpty());
  EXPECT_EQ(index.Find(kRoot, Tokens("aab", 1), 384).snapshot, 3 * kBlock);
  index.CheckConsistent();
}

TEST(PrefixEviction, WhatCannotFitFreesNothing) {
  PrefixIndex index(Room(3, 1));
  index.Insert(kRoot, Tokens("ab"), kSnapshotBytes);
  EXPECT_THAT(index.Insert(kRoot, Tokens("cdef"), kSnapshotBytes).freed_snapshots, IsEmpty());
  EXPECT_THAT(index.Insert(kRoot, Tokens("c"), kSnapshotBytes + 1).freed_snapshots, IsEmpty());
  EXPECT_EQ(index.Find(kRoot, Tokens("ab", 1), 256).snapshot, 2 * kBlock);
  PrefixIndex nothing(Room(0, 0));
  EXPECT_EQ(nothing.Insert(kRoot, Tokens("a"), kSnapshotBytes).snapshot, PrefixIndex::kNone);
  nothing.CheckConsistent();
}

/// Random prompts over few letters, so that they share beginnings; a model of what must hold.
TEST(PrefixEviction, RandomOperationsKeepTheRules) {
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    const auto options = Room(4 + rng() % 40, 1 + rng() % 8);
    PrefixIndex index(options);
    std::map<PrefixIndex::Id, Ids> kept;  // blocks by their whole prefix
    std::map<PrefixIndex::Id, int> pinned;
    std::set<PrefixIndex::Id> snapshots;
    for (int step = 0; step < 300; ++step) {
      std::string blocks;
      for (uint32_t n = 1 + rng() % 6; n > 0; --n) blocks.push_back(static_cast<char>('a' + rng() % 3));
      const Ids ids = Tokens(blocks);
      if (rng() % 3 == 0) {
        const auto match = index.Find(kRoot, ids, static_cast<int64_t>(ids.size()) - 1);
        if (match.node == PrefixIndex::kNone) continue;
        EXPECT_TRUE(snapshots.contains(match.node));
        EXPECT_TRUE(std::equal(ids.begin(), ids.begin() + match.snapshot, kept.at(match.node).begin(),
                               kept.at(match.node).end()));
        if (rng() % 2 == 0) index.Touch(match.node);
        if (rng() % 4 == 0 && pinned.size() < 3) {
          index.Pin(match.node);
          ++pinned[match.node];
        }
        continue;
      }
      if (!pinned.empty() && rng() % 2 == 0) {
        const auto any = pinned.begin();
        index.Unpin(any->first);
        if (--any->second == 0) pinned.erase(any);
      }
      const int64_t size = 1 + static_cast<int64_t>(rng() % (2 * kSnapshotBytes));
      const auto change = index.Insert(kRoot, ids, size);
      for (const auto id : change.freed_snapshots) {
        EXPECT_FALSE(pinned.contains(id));
        EXPECT_EQ(snapshots.erase(id), 1u);
      }
      for (const auto id : change.freed_blocks) {
        EXPECT_FALSE(snapshots.contains(id));
        const Ids gone = kept.at(id);
        kept.erase(id);
        for (const auto& [other, prefix] : kept)
          EXPECT_FALSE(prefix.size() > gone.size() && std::equal(gone.begin(), gone.end(), prefix.begin()))
              << "block " << id << " went before block " << other << " behind it";
      }
      size_t at = ids.size() / kBlock - change.added.size();
      for (const auto id : change.added) {
        ++at;
        EXPECT_TRUE(kept.emplace(id, Ids(ids.begin(), ids.begin() + at * kBlock)).second);
      }
      if (change.snapshot != PrefixIndex::kNone) {
        snapshots.insert(change.snapshot);
        EXPECT_EQ(kept.at(change.snapshot), ids);
      }
      for (const auto& [id, count] : pinned) EXPECT_TRUE(snapshots.contains(id));
      EXPECT_LE(index.bytes(), options.max_bytes);
      EXPECT_LE(index.snapshot_bytes(), options.max_snapshot_bytes);
      EXPECT_EQ(index.blocks(), static_cast<int64_t>(kept.size()));
      index.CheckConsistent();
    }
  }
}

}  // namespace
}  // namespace cachalot

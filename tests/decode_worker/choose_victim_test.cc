#include "decode_worker/choose_victim.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

namespace cachalot {
namespace {

using Views = std::vector<VictimView>;

TEST(ChooseVictim, TakesTheYoungestButNeverTheOldest) {
  EXPECT_EQ(ChooseVictim(Views{}), std::nullopt);
  EXPECT_EQ(ChooseVictim(Views{{5}}), std::nullopt);
  EXPECT_EQ(ChooseVictim(Views{{5}, {7}, {6}}), 1u);
  EXPECT_EQ(ChooseVictim(Views{{9}, {7}}), 0u);
}

TEST(ChooseVictim, TakesStalledOnesFirstEvenIfTheyAreTheOldest) {
  EXPECT_EQ(ChooseVictim(Views{{1, true}, {2}, {3}}), 0u);
  EXPECT_EQ(ChooseVictim(Views{{1, true}, {2, true}, {3}}), 1u);
  EXPECT_EQ(ChooseVictim(Views{{1, true}, {2}}), 0u);
  EXPECT_EQ(ChooseVictim(Views{{1, true}}), 0u);
}

TEST(ChooseVictim, NeverTakesAPinnedOne) {
  EXPECT_EQ(ChooseVictim(Views{{1, false, true}, {2}}), std::nullopt);
  EXPECT_EQ(ChooseVictim(Views{{1}, {2, false, true}}), std::nullopt);
  EXPECT_EQ(ChooseVictim(Views{{1}, {2}, {3, true, true}}), 1u);
}

/// Sequences over a pool of blocks, played with the rules of the decode worker and its router: a block holds
/// `kBlock` tokens, one token a step, a victim waits in a line until there is room for what it has and one
/// token more.
class Play {
 public:
  struct Sequence {
    int prompt = 0, output = 0;  // tokens: at first, wanted
    int have = 0;                // output tokens
    int slow = 0;                // its reader reads in one of so many steps; 0: always
    int unread = 0;
    bool pinned = false;
    uint64_t order = 0;
    int blocks = 0;
  };
  static constexpr int kBlock = 4, kWindow = 3;
  static int Blocks(int tokens) { return (tokens + kBlock - 1) / kBlock; }

  Play(int blocks, std::mt19937& rng) : free_(blocks), total_(blocks), rng_(rng) {}

  void Add(const Sequence& sequence) { line_.push_back(sequence); }
  size_t finished() const { return finished_; }
  int preemptions() const { return preemptions_; }
  bool idle() const { return running_.empty() && line_.empty(); }

  void Step() {
    TakeFromTheLine();
    for (size_t i = 0; i < running_.size();) {
      Sequence& s = running_[i];
      const int needed = Blocks(s.prompt + s.have + 1) - s.blocks;
      if (Stalled(s) || needed <= free_) {
        if (!Stalled(s) && needed > 0) Take(s, needed);
        ++i;
        continue;
      }
      const auto victim = Victim();
      if (!victim) {
        ++i;
        continue;
      }
      ++preemptions_;
      const bool oldest = *victim == Oldest();
      EXPECT_FALSE(oldest);
      Free(running_[*victim]);
      line_.push_back(running_[*victim]);
      running_.erase(running_.begin() + static_cast<ptrdiff_t>(*victim));
      if (*victim < i) --i;
    }
    for (size_t i = 0; i < running_.size();) {
      Sequence& s = running_[i];
      const bool runs = !Stalled(s) && s.blocks >= Blocks(s.prompt + s.have + 1);
      if (runs) ++s.have, ++s.unread;
      if (s.slow == 0 || rng_() % s.slow == 0) s.unread = 0;
      if (s.have < s.output) {
        ++i;
        continue;
      }
      Free(s);
      ++finished_;
      running_.erase(running_.begin() + static_cast<ptrdiff_t>(i));
    }
  }

 private:
  static bool Stalled(const Sequence& s) { return s.unread > kWindow; }
  size_t Oldest() const {
    size_t oldest = running_.size();
    for (size_t i = 0; i < running_.size(); ++i)
      if (!Stalled(running_[i]) && !running_[i].pinned &&
          (oldest == running_.size() || running_[i].order < running_[oldest].order))
        oldest = i;
    return oldest;
  }
  std::optional<size_t> Victim() const {
    Views views;
    for (const Sequence& s : running_) views.push_back({s.order, Stalled(s), s.pinned});
    return ChooseVictim(views);
  }
  void Take(Sequence& s, int blocks) {
    free_ -= blocks;
    s.blocks += blocks;
    ASSERT_GE(free_, 0);
  }
  void Free(Sequence& s) {
    free_ += s.blocks;
    s.blocks = 0;
    ASSERT_LE(free_, total_);
  }
  /// The first of it only, as long as it fits; its prefill gives one token.
  void TakeFromTheLine() {
    while (!line_.empty()) {
      Sequence s = line_.front();
      const int blocks = Blocks(s.pinned ? s.prompt + s.output : s.prompt + s.have + 1);
      if (blocks > free_) return;
      line_.pop_front();
      Take(s, blocks);
      ++s.have;
      s.unread = 0;  // it comes back when its reader has read
      s.order = next_order_++;
      if (s.have < s.output) {
        running_.push_back(s);
      } else {
        Free(s);
        ++finished_;
      }
    }
  }

  int free_;
  const int total_;
  std::mt19937& rng_;
  std::vector<Sequence> running_;
  std::deque<Sequence> line_;
  uint64_t next_order_ = 1;
  size_t finished_ = 0;
  int preemptions_ = 0;
};

TEST(ChooseVictim, WithAnyMixOfSequencesEachOfWhichAloneFitsAllFinish) {
  int64_t preemptions = 0;
  for (uint32_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 rng(seed);
    const auto draw = [&](int low, int high) { return low + static_cast<int>(rng() % (high - low + 1)); };
    const int blocks = draw(2, 24);
    Play play(blocks, rng);
    const int count = draw(1, 20);
    int64_t tokens = 0;
    for (int i = 0; i < count; ++i) {
      Play::Sequence s;
      const int most = blocks * Play::kBlock;
      s.prompt = draw(1, most - 1);
      s.output = draw(1, most - s.prompt);
      s.slow = draw(0, 3) == 0 ? draw(2, 12) : 0;
      s.pinned = draw(0, 9) == 0;
      tokens += s.output;
      play.Add(s);
    }
    // Every step of the play without a stalled reader gives a token; slow ones are read every 12th step or
    // so.
    const int64_t most = 1000 + tokens * 200;
    int64_t steps = 0;
    for (; !play.idle() && steps < most; ++steps) play.Step();
    ASSERT_TRUE(play.idle()) << play.finished() << " of " << count << " finished in " << steps << " steps";
    ASSERT_EQ(play.finished(), static_cast<size_t>(count));
    ASSERT_LE(play.preemptions(), tokens);  // each round gives a token at least
    preemptions += play.preemptions();
  }
  EXPECT_GT(preemptions, 5000) << "the plays hardly preempt: they show nothing";
}

}  // namespace
}  // namespace cachalot

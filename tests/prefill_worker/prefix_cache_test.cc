// With a prefix cache every prompt gets the bits that it gets without: KV, first token and log probabilities.

#include <gmock/gmock.h>

#include <map>
#include <random>
#include <set>

#include "tests/prefill_worker/prefix_cache_fixture.h"
#include "tests/support/oracle.h"
#include "tests/support/verses.h"

namespace cachalot::testing {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kBlock = PrefixIndex::kBlockTokens;
constexpr int64_t kLongest = 1300;

std::string TinyModel() { return CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny"; }

/// Where it is likeliest to go wrong: around blocks, around windows (16 in the tiny model, 64 in the demo's)
/// and compressor windows behind them, and at the beginning.
std::vector<int64_t> LengthsAroundCuts(int64_t step, int64_t longest = kLongest) {
  std::vector<int64_t> lengths = {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65};
  for (int64_t cut = kBlock; cut <= longest; cut += step)
    for (const int64_t off : {-2, -1, 0, 1, 2, 4, 16, 64})
      if (cut + off <= longest) lengths.push_back(cut + off);
  return lengths;
}

struct Case {
  const char* name;
  std::string model, mode;
  // What the fast tests look at; the slow one sees all of it.
  int64_t step, longest;  // cuts, and the longest prompt around them
  int64_t sweep;          // every length up to this
};

class PrefixCacheBits : public ::testing::TestWithParam<Case> {
 protected:
  /// Without a cache; the prompts of one length and seed are the same.
  const Outcome& Cold(const std::vector<int32_t>& prompt) {
    const auto found = cold_.find(prompt);
    if (found != cold_.end()) return found->second;
    return cold_[prompt] = m_.Run(prompt, nullptr)->outcome;
  }
  bool Small() const { return GetParam().model == TinyModel(); }
  static int64_t WholeBlocks(int64_t tokens) { return tokens / kBlock * kBlock; }

  CacheModel m_{GetParam().model, GetParam().mode};
  /// By length, of the first `longest` ids. One token at a time, and without a flow.
  std::vector<Outcome> ColdByLength(const std::vector<int32_t>& ids, int64_t longest) {
    std::vector<Outcome> outcomes(longest + 1);
    SequenceKv kv = *m_.pools.Reserve(longest);
    for (int64_t n = 1; n <= longest; ++n) {
      const Segment segment{&kv, std::span(ids).subspan(n - 1, 1)};
      const auto logits = m_.model.Forward({&segment, 1}, m_.experts);
      if (!logits.ok()) return {};
      const auto row = logits->last(0);
      const auto token = static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
      outcomes[n] = {DigestOfKv(kv, n), token, LogprobsOf(row, token, 20)};
    }
    return outcomes;
  }
  /// Every length follows the shorter ones in one cache, so that each begins at the last cut before it.
  void ExpectColdBitsAtEveryLength(int64_t longest) {
    const auto ids = m_.Prompt(longest, 1);
    const auto want = ColdByLength(ids, longest);
    ASSERT_FALSE(want.empty());
    const auto store = m_.Store();
    for (int64_t n = 1; n <= longest; ++n) {
      const auto got = m_.Run(std::vector(ids.begin(), ids.begin() + n), store.get());
      ASSERT_EQ(got->outcome, want[n]) << n << " tokens, of which " << got->cached << " were cached";
      ASSERT_EQ(got->cached, WholeBlocks(n - 1));
    }
    store->index().CheckConsistent();
  }
  void ExpectColdBitsAround(const std::vector<int64_t>& lengths) {
    const auto ids = m_.Prompt(kLongest, 1);
    const auto want = ColdByLength(ids, *std::max_element(lengths.begin(), lengths.end()));
    ASSERT_FALSE(want.empty());
    for (const int64_t n : lengths) {
      SCOPED_TRACE(n);
      const auto store = m_.Store();
      const std::vector prompt(ids.begin(), ids.begin() + n);
      const auto first = m_.Run(prompt, store.get()), again = m_.Run(prompt, store.get());
      EXPECT_EQ(first->cached, 0);
      EXPECT_EQ(again->cached, WholeBlocks(n - 1)) << "all but the block of the last token";
      ASSERT_EQ(first->outcome, want[n]);
      ASSERT_EQ(again->outcome, want[n]);
      if (n % kBlock > 1 && n % kBlock < kBlock - 1) continue;
      const auto longer = m_.Prompt(n + 70, 2, n);
      const auto continued = m_.Run(longer, store.get());
      EXPECT_EQ(continued->cached, WholeBlocks(n));
      ASSERT_EQ(continued->outcome, Cold(longer));
    }
  }

  std::map<std::vector<int32_t>, Outcome> cold_;
};

TEST_P(PrefixCacheBits, EveryLengthOnTopOfShorterOnes) { ExpectColdBitsAtEveryLength(GetParam().sweep); }

// The same prompt again, and a longer one that begins with it.
TEST_P(PrefixCacheBits, RepeatedAndContinuedAroundCuts) {
  ExpectColdBitsAround(LengthsAroundCuts(GetParam().step, GetParam().longest));
}

// Slow tier: the whole of both for every model; of the larger ones every third length is repeated.
TEST_P(PrefixCacheBits, DISABLED_EveryLength) {
  ExpectColdBitsAtEveryLength(kLongest);
  std::vector<int64_t> all;
  for (int64_t n = 1; n <= kLongest; n += Small() ? 1 : 3) all.push_back(n);
  for (const int64_t n : LengthsAroundCuts(kBlock)) all.push_back(n);
  ExpectColdBitsAround(all);
}

// Three prompts that share a beginning and nothing else: the second finds where they part, the third starts
// there.
TEST_P(PrefixCacheBits, ASharedBeginningIsFoundWhereThePromptsPart) {
  const std::vector<int64_t> all = {127, 128, 129, 255, 256, 258, 500}, few = {128, 258};
  for (const int64_t shared : Small() ? all : few) {
    SCOPED_TRACE(shared);
    const auto store = m_.Store();
    std::vector<std::shared_ptr<OutcomeSink>> runs;
    for (int seed = 1; seed <= 3; ++seed) {
      const auto prompt = m_.Prompt(shared + 130, seed, shared);
      runs.push_back(m_.Run(prompt, store.get()));
      EXPECT_EQ(runs.back()->outcome, Cold(prompt));
    }
    EXPECT_EQ(runs[0]->cached, 0);
    EXPECT_EQ(runs[1]->cached, 0) << "no snapshot is there yet";
    EXPECT_EQ(runs[2]->cached, WholeBlocks(shared));
  }
}

// Many prompts of a few families, several at a time, under budgets that hold almost nothing.
TEST_P(PrefixCacheBits, UnderATinyBudgetWhileJobsRun) {
  const auto one = m_.Store();
  m_.Run(m_.Prompt(300, 1), one.get());
  const int64_t entry = one->stats().bytes;  // two blocks and a snapshot
  const std::vector<int64_t> all = {entry / 2, entry, entry * 5 / 2, entry * 6}, few = {entry * 5 / 2};
  for (const int64_t budget : Small() ? all : few) {
    SCOPED_TRACE(budget);
    const auto store = m_.Store(budget);
    std::mt19937 rng(static_cast<uint32_t>(budget / entry) + 1);
    PrefillFlow flow(m_.model, m_.experts, 96, store.get());
    std::vector<std::pair<std::vector<int32_t>, std::shared_ptr<OutcomeSink>>> jobs;
    for (uint64_t id = 1; id <= (Small() ? 16 : 10); ++id) {
      auto prompt = m_.Prompt(130 + static_cast<int64_t>(rng() % 300), static_cast<int>(rng() % 3),
                              static_cast<int64_t>(rng() % 3) * 140);
      jobs.emplace_back(prompt, m_.Submit(flow, id, m_.State(prompt)));
      if (rng() % 5 == 0) {
        flow.Cancel(id);
        jobs.pop_back();
      }
      for (uint32_t steps = rng() % 6; steps > 0; --steps) flow.Step();
      ASSERT_LE(store->stats().bytes, budget);
      store->index().CheckConsistent();
    }
    while (flow.Step()) store->index().CheckConsistent();
    for (const auto& [prompt, sink] : jobs) EXPECT_EQ(sink->outcome, Cold(prompt));
    EXPECT_TRUE(budget <= entry || store->stats().hits > 0);
    EXPECT_TRUE(budget != entry * 5 / 2 || store->stats().evicted_blocks > 0);
  }
  EXPECT_EQ(m_.pools.used_blocks(), 0);
}

INSTANTIATE_TEST_SUITE_P(Models, PrefixCacheBits,
                         ::testing::Values(Case{"TinyExact", TinyModel(), "exact", kBlock, 520, 300},
                                           Case{"TinyBf16", TinyModel(), "bf16", 3 * kBlock, 520, 150},
                                           Case{"DemoExact", DemoDirectory(), "exact", 2 * kBlock, 300, 20},
                                           Case{"DemoBf16", DemoDirectory(), "bf16", 2 * kBlock, 300, 20}),
                         [](const auto& info) { return info.param.name; });

class PrefixCacheFlow : public ::testing::Test {
 protected:
  void ExpectAsCold(const OutcomeSink& sink, const std::vector<int32_t>& prompt) {
    ASSERT_TRUE(sink.done) << sink.error;
    EXPECT_EQ(sink.outcome, m_.Run(prompt, nullptr)->outcome);
  }
  static void RunToEnd(PrefillFlow& flow) {
    while (flow.Step()) {
    }
  }
  CacheModel m_{TinyModel(), "exact"};
};

TEST_F(PrefixCacheFlow, ChunksEndAtSnapshotPointsAndAHitIsOneChunk) {
  const auto store = m_.Store();
  const auto prompt = m_.Prompt(700, 1);
  EXPECT_THAT(m_.Run(prompt, nullptr)->ends, ElementsAre(256, 512, 700));
  EXPECT_THAT(m_.Run(prompt, store.get())->ends, ElementsAre(256, 512, 640, 700));
  EXPECT_THAT(m_.Run(prompt, store.get())->ends, ElementsAre(640, 700));
  EXPECT_EQ(store->stats().hits, 1);
  EXPECT_EQ(store->stats().misses, 1);
  EXPECT_EQ(store->stats().hit_tokens, 640);
}

TEST_F(PrefixCacheFlow, LongPromptsLeaveASnapshotEvery4096Tokens) {
  CacheModel& m = m_;
  const auto store = m.Store();
  const auto prompt = m.Prompt(8400, 1);
  m.Run(prompt, store.get(), 1024);
  EXPECT_EQ(store->index().snapshots(), 3);
  const auto other = m.Prompt(4200, 2, 4100);
  const auto run = m.Run(other, store.get(), 1024);
  EXPECT_EQ(run->cached, 4096);
  ExpectAsCold(*run, other);
}

TEST_F(PrefixCacheFlow, AJobFindsWhatTheOneBeforeItLeavesThoughBothWaited) {
  const auto store = m_.Store();
  PrefillFlow flow(m_.model, m_.experts, 128, store.get());
  const auto first = m_.Prompt(400, 1), second = m_.Prompt(500, 2, 400);
  const auto a = m_.Submit(flow, 1, m_.State(first)), b = m_.Submit(flow, 2, m_.State(second));
  RunToEnd(flow);
  EXPECT_EQ(b->cached, 384);
  ExpectAsCold(*a, first);
  ExpectAsCold(*b, second);
}

TEST_F(PrefixCacheFlow, JobsThatWantRowsAreComputedAndFillIt) {
  const auto store = m_.Store();
  const auto prompt = m_.Prompt(300, 1);
  const auto vocab = static_cast<size_t>(m_.weights->config.vocab_size);
  SequenceState logits = m_.State(prompt), logprobs = m_.State(prompt);
  logits.want_logits = true;
  logprobs.params.prompt_logprobs = 2;
  for (const SequenceState& state : {logits, logprobs}) {
    PrefillFlow flow(m_.model, m_.experts, 256, store.get());
    const auto sink = m_.Submit(flow, 1, state);
    RunToEnd(flow);
    EXPECT_EQ(sink->cached, 0);
    EXPECT_EQ(sink->reached, 300);
    EXPECT_EQ(sink->logit_rows.size(), state.want_logits ? 300 * vocab : 0);
    ExpectAsCold(*sink, prompt);
  }
  EXPECT_EQ(store->stats().hits, 0);
  EXPECT_EQ(m_.Run(prompt, store.get())->cached, 256);
}

TEST_F(PrefixCacheFlow, EmittedTokensArePartOfTheContext) {
  const auto store = m_.Store();
  const auto whole = m_.Prompt(400, 1);
  m_.Run(whole, store.get());
  SequenceState resumed = m_.State({whole.begin(), whole.begin() + 200});
  resumed.emitted.assign(whole.begin() + 200, whole.end());
  const auto run = [&](PrefixStore* cache) {
    PrefillFlow flow(m_.model, m_.experts, 256, cache);
    auto sink = m_.Submit(flow, 1, resumed);
    RunToEnd(flow);
    return sink;
  };
  const auto cold = run(nullptr), warm = run(store.get());
  EXPECT_EQ(warm->cached, 384);
  EXPECT_EQ(warm->outcome, cold->outcome);
}

TEST_F(PrefixCacheFlow, FollowersHearOfTheHitAndTakeOver) {
  for (const bool cancel : {false, true})
    for (const int steps : {0, 1}) {
      const auto store = m_.Store();
      const auto prompt = m_.Prompt(400, 1), longer = m_.Prompt(600, 2, 400);
      m_.Run(prompt, store.get());
      PrefillFlow flow(m_.model, m_.experts, 64, store.get());
      std::vector<std::shared_ptr<OutcomeSink>> sinks;
      for (uint64_t id = 1; id <= 3; ++id) sinks.push_back(m_.Submit(flow, id, m_.State(longer)));
      for (int i = 0; i < steps; ++i) flow.Step();
      if (cancel) flow.Cancel(1);
      RunToEnd(flow);
      EXPECT_EQ(sinks[0]->done, !cancel);
      for (size_t i = cancel ? 1 : 0; i < 3; ++i) {
        EXPECT_EQ(sinks[i]->cached, 384);
        ExpectAsCold(*sinks[i], longer);
      }
      EXPECT_EQ(store->stats().hits, 1) << "one look-up for all";
      EXPECT_EQ(m_.Run(longer, store.get())->cached, 512);
    }
  EXPECT_EQ(m_.pools.used_blocks(), 0);
}

TEST_F(PrefixCacheFlow, CancelledJobsLeaveWhatTheyFinishedAndNothingElse) {
  const auto prompt = m_.Prompt(700, 1);
  for (int steps = 0; steps <= 7; ++steps) {
    SCOPED_TRACE(steps);
    const auto store = m_.Store();
    m_.Run(m_.Prompt(256 + 60, 2, 256), store.get());  // shares two blocks
    {
      PrefillFlow flow(m_.model, m_.experts, 100, store.get());
      m_.Submit(flow, 1, m_.State(prompt));
      for (int i = 0; i < steps; ++i) flow.Step();
      flow.Cancel(1);
      EXPECT_FALSE(flow.Step());
    }
    EXPECT_EQ(m_.pools.used_blocks(), 0);
    store->index().CheckConsistent();
    const auto again = m_.Run(prompt, store.get());
    EXPECT_EQ(again->cached, steps < 4 ? 256 : 640);
    ExpectAsCold(*again, prompt);
  }
}

/// The first `chunks` chunks go through, the next one fails.
class FailingExperts final : public ExpertBackend {
 public:
  FailingExperts(ExpertBackend* experts, int chunks) : experts_(experts), chunks_(chunks) {}
  Status Begin(const ExpertCall& call) override {
    if (call.layer == 0 && chunks_-- == 0) return Unavailable("shard 1 is away");
    return experts_->Begin(call);
  }
  Status Wait() override { return experts_->Wait(); }

 private:
  ExpertBackend* experts_;
  int chunks_;
};

TEST_F(PrefixCacheFlow, AFailedChunkLeavesNothingBehind) {
  const auto prompt = m_.Prompt(700, 1);
  for (int chunks = 0; chunks < 8; ++chunks) {
    SCOPED_TRACE(chunks);
    const auto store = m_.Store();
    FailingExperts failing(&m_.experts, chunks);
    PrefillFlow flow(m_.model, failing, 100, store.get());
    const auto sink = m_.Submit(flow, 1, m_.State(prompt));
    RunToEnd(flow);
    EXPECT_EQ(sink->error.code(), StatusCode::kUnavailable);
    store->index().CheckConsistent();
    ExpectAsCold(*m_.Run(prompt, store.get()), prompt);
  }
}

PrefixKey OneKeyPerPlace(const PrefixKey& before, std::span<const int32_t>) { return {before.low + 1, 5}; }

TEST_F(PrefixCacheFlow, CollisionsGiveNoWrongRows) {
  PrefixStore store(m_.pools.layout(), {.salt = "s", .hash = OneKeyPerPlace});
  for (int round = 0; round < 2; ++round)
    for (int seed = 1; seed <= 4; ++seed)
      for (const int64_t from : {0, 128, 200}) {
        const auto prompt = m_.Prompt(390, seed, from);
        const auto run = m_.Run(prompt, &store);
        ExpectAsCold(*run, prompt);
        // The first has the keys of all places.
        const int64_t shared = seed == 1 ? (round == 0 && from == 0 ? 0 : 384) : from / kBlock * kBlock;
        EXPECT_LE(run->cached, shared);
        EXPECT_TRUE(seed > 1 || run->cached == shared);
      }
  store.index().CheckConsistent();
}

TEST_F(PrefixCacheFlow, OtherWeightsModesAndBackEndsHaveAnotherSalt) {
  const CacheModel bf16(TinyModel(), "bf16"), demo(DemoDirectory(), "exact");
  ThreadPool threads(1);
  const Model ref(m_.weights, **kernels::SelectKernels("ref"), threads);
  const std::set<std::string> salts = {PrefixSalt(m_.model), PrefixSalt(bf16.model), PrefixSalt(demo.model),
                                       PrefixSalt(ref)};
  EXPECT_EQ(salts.size(), 4u);
  EXPECT_EQ(PrefixSalt(m_.model), PrefixSalt(CacheModel(TinyModel(), "exact").model));
  EXPECT_EQ(MakePrefixStore(m_.model, m_.pools.layout(), {.bytes = 0}), nullptr) << "off";
}

}  // namespace
}  // namespace cachalot::testing

// After warm-up a decode step allocates nothing in model, kernels, kv and sampling (CONTRIBUTING.md).

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "common/model/forward.h"
#include "common/sampling/sampler.h"
#include "tests/support/oracle.h"

namespace {
std::atomic<bool> counting = false;
std::atomic<int64_t> allocations = 0;
}  // namespace

void* operator new(size_t bytes) {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace cachalot {
namespace {

class DecodeStep : public ::testing::TestWithParam<int> {};

TEST_P(DecodeStep, AllocatesNothingAfterWarmUp) {
  if (!kernels::CpuKernels()) GTEST_SKIP() << "no AVX2";
  ThreadPool threads(GetParam());
  const auto weights = *ModelWeights::Load(CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny", WeightSelection::All());
  Model model(weights, *kernels::CpuKernels(), threads);
  BlockPools pools(KvLayout(KvShapeOf(weights->config)), 4, 4096);
  LocalExperts experts(ExpertTable(*weights), *kernels::CpuKernels(), threads, weights->config.swiglu_limit);
  Sampler sampler(weights->config.vocab_size);
  SequenceKv a = *pools.Reserve(1024), b = *pools.Reserve(64, 1024);
  int32_t ids[2] = {3, 4};
  const auto step = [&](uint64_t index) {
    ASSERT_TRUE(b.Grow(b.tokens() + 1));
    const Segment segments[2] = {{&a, {ids, 1}, false}, {&b, {ids + 1, 1}, false}};
    const auto logits = model.Forward(segments, experts);
    ASSERT_TRUE(logits.ok());
    for (int i = 0; i < 2; ++i)
      ids[i] = *sampler.Sample(logits->last(i), {.temperature = 1, .seed = 7}, index);
  };
  uint64_t index = 0;
  for (; index < 300; ++index) step(index);  // past the window, two HCA rows, a real indexer choice
  // Key lists grow with the sequence: they may double once more, not once a step.
  constexpr int kSteps = 100, kGrowth = 4;
  allocations = 0;
  counting = true;
  for (; index < 300 + kSteps; ++index) step(index);
  counting = false;
  EXPECT_LE(allocations.load(), kGrowth * GetParam()) << "in " << kSteps << " steps";
}

INSTANTIATE_TEST_SUITE_P(Threads, DecodeStep, ::testing::Values(1, 2));

}  // namespace
}  // namespace cachalot

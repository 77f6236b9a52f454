// A step's tokens as messages that the routers can take.

#include "decode_worker/step_batches.h"

#include <gtest/gtest.h>

#include "common/cluster/compat.h"

namespace cachalot {
namespace {

constexpr int kVocab = 129280;  // of the released models: half a megabyte of logits a token
constexpr size_t kRow = kVocab * sizeof(float);

TokenOut Token(int i, bool logits, bool logprobs = false) {
  TokenOut token;
  token.index = i;
  token.token = 100 + i;
  token.finish = i % 3 == 0 ? FinishReason::kLength : FinishReason::kNone;
  if (logits) token.logits.assign(kVocab, static_cast<float>(i));
  if (logprobs) token.logprobs = TokenLogprobs{-1.f, {{7, -2.f}}};
  return token;
}

/// That the messages hold tokens 0 to count - 1 in order, each complete in itself.
void ExpectAll(const std::vector<v1::StepBatch>& batches, int count, bool logits, bool logprobs) {
  int next = 0;
  for (const v1::StepBatch& batch : batches) {
    const int size = batch.handles_size();
    ASSERT_GT(size, 0);
    ASSERT_EQ(batch.indices_size(), size);
    ASSERT_EQ(batch.tokens_size(), size);
    ASSERT_EQ(batch.finish_size(), size);
    ASSERT_EQ(batch.logits_size(), logits ? size : 0);
    if (!logprobs) {
      ASSERT_EQ(batch.logprobs_size(), 0);
    }
    for (int i = 0; i < size; ++i, ++next) {
      EXPECT_EQ(batch.handles(i), 1000u + next);
      EXPECT_EQ(batch.indices(i), next);
      EXPECT_EQ(batch.tokens(i), 100 + next);
      EXPECT_EQ(batch.finish(i), ToProto(next % 3 == 0 ? FinishReason::kLength : FinishReason::kNone));
      if (logits) {
        EXPECT_EQ(batch.logits(i).size(), kRow);
      }
    }
  }
  EXPECT_EQ(next, count);
}

TEST(StepBatches, TokensAloneAreOneMessage) {
  StepBatches step(kStepBatchBytes);
  for (int i = 0; i < 4096; ++i) step.Add(1000u + i, Token(i, false), false);
  const auto batches = step.Take();
  EXPECT_EQ(batches.size(), 1u);
  ExpectAll(batches, 4096, false, false);
}

TEST(StepBatches, LogitsOfManySequencesComeInSeveral) {
  StepBatches step(kStepBatchBytes);
  for (int i = 0; i < 64; ++i) step.Add(1000u + i, Token(i, true, i == 5), true);
  const auto batches = step.Take();
  ExpectAll(batches, 64, true, true);
  EXPECT_EQ(batches.size(), 64 / (kStepBatchBytes / kRow));  // 16 rows each
  for (const v1::StepBatch& batch : batches) EXPECT_LE(batch.ByteSizeLong(), kStepBatchBytes);
  // Log probabilities are parallel where there are any, and absent where there are none.
  EXPECT_EQ(batches[0].logprobs_size(), batches[0].tokens_size());
  EXPECT_EQ(batches[0].logprobs(5).logprob(), -1.f);
  EXPECT_EQ(batches[1].logprobs_size(), 0);
}

TEST(StepBatches, OneTokenOverTheLimitGoesAlone) {
  StepBatches step(1);
  for (int i = 0; i < 3; ++i) step.Add(1000u + i, Token(i, false), false);
  const auto batches = step.Take();
  EXPECT_EQ(batches.size(), 3u);
  ExpectAll(batches, 3, false, false);
}

}  // namespace
}  // namespace cachalot

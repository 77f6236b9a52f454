#pragma once
// The prefill flow over the tiny model, and a sink that writes down what it hears.

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "prefill_worker/prefill_flow.h"
#include "tests/prefill_worker/test_model.h"

namespace cachalot::testing {

/// Writes down all that it hears.
class Recorder final : public PrefillSink {
 public:
  void OnChunk(const SequenceKv& kv, int64_t from, int64_t to, std::span<const float> logits) override {
    EXPECT_EQ(from, computed);
    EXPECT_EQ(kv.tokens(), to);
    computed = to;
    ++chunks;
    all_logits.insert(all_logits.end(), logits.begin(), logits.end());
  }
  void OnPromptLogprobs(int64_t first, std::vector<TokenLogprobs> entries) override {
    EXPECT_EQ(first, static_cast<int64_t>(prompt_logprobs.size()) + 1);
    EXPECT_EQ(first + static_cast<int64_t>(entries.size()), std::min<int64_t>(computed + 1, prompt_tokens));
    prompt_logprobs.insert(prompt_logprobs.end(), entries.begin(), entries.end());
  }
  int64_t RowsWanted(int64_t) const override { return rows_wanted; }
  void OnFirstToken(OutputToken first, SequenceKv sequence) override {
    token = first.token;
    finish = first.finish;
    logprobs = first.logprobs;
    kv = std::move(sequence);
  }
  void OnError(const Status& status) override { error = status; }

  bool done() const { return kv.valid(); }

  int64_t rows_wanted = std::numeric_limits<int64_t>::max();
  int64_t computed = 0;
  int chunks = 0;
  std::vector<float> all_logits;
  std::vector<TokenLogprobs> prompt_logprobs;
  int64_t prompt_tokens = 0;
  std::optional<TokenLogprobs> logprobs;
  int32_t token = -1;
  FinishReason finish = FinishReason::kNone;
  SequenceKv kv;
  Status error;
};

class PrefillFlowTest : public ::testing::Test {
 protected:
  std::shared_ptr<Recorder> Submit(PrefillFlow& flow, uint64_t id, SequenceState state,
                                   int64_t max_chunk = 0) {
    auto sink = std::make_shared<Recorder>();
    sink->prompt_tokens = static_cast<int64_t>(state.prompt.size());
    SequenceKv kv = *m_.pools.Reserve(static_cast<int64_t>(state.Context().size()));
    flow.Submit({id, std::move(state), std::move(kv), max_chunk, sink});
    return sink;
  }
  std::shared_ptr<Recorder> Alone(SequenceState state) {
    PrefillFlow flow(m_.model, m_.experts, 4096);
    auto sink = Submit(flow, 1, std::move(state));
    while (flow.Step()) {
    }
    return sink;
  }

  TestModel m_;
};

}  // namespace cachalot::testing

#pragma once
// The oracle's tiny model with KV and experts whose calls a test can hold up or fail.

#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/kv/transfer_frame.h"
#include "common/model/forward.h"
#include "tests/support/oracle.h"
#include "tests/support/patience.h"

namespace cachalot::testing {

inline std::string TinyDirectory() { return CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny"; }

/// Local experts with a gate in front of every chunk (its first layer).
class GatedExperts final : public ExpertBackend {
 public:
  GatedExperts(const ModelWeights& weights, const kernels::KernelTable& kernels, ThreadPool& threads)
      : local_(ExpertTable(weights), kernels, threads, weights.config.swiglu_limit) {}

  /// From now on only `chunks` more chunks pass.
  void Allow(int chunks) {
    std::lock_guard lock(mutex_);
    allowed_ = chunks;
    changed_.notify_all();
  }
  void AllowAll() { Allow(1 << 30); }
  /// The next chunk that passes ends with `status`.
  void FailNext(Status status) {
    std::lock_guard lock(mutex_);
    failure_ = std::move(status);
  }
  /// Until the step thread has come to the gate for the n-th time.
  bool WaitForChunk(int n) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] { return chunks_ >= n; });
  }
  int chunks() {
    std::lock_guard lock(mutex_);
    return chunks_;
  }

  Status Begin(const ExpertCall& call) override {
    if (call.layer == 0) {
      std::unique_lock lock(mutex_);
      ++chunks_;
      changed_.notify_all();
      changed_.wait(lock, [&] { return allowed_ > 0; });
      --allowed_;
      if (!failure_.ok()) return std::exchange(failure_, OkStatus());
    }
    return local_.Begin(call);
  }
  Status Wait() override { return local_.Wait(); }

 private:
  LocalExperts local_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int allowed_ = 1 << 30, chunks_ = 0;
  Status failure_;
};

/// Everything that a prefill needs but the flow. `tokens` of KV in all.
struct TestModel {
  explicit TestModel(int64_t tokens = 16384, int sequences = 16)
      : oracle(*OracleCase::Load(TinyDirectory())),
        weights(*ModelWeights::Load(TinyDirectory(), WeightSelection::All())),
        kernels(**kernels::SelectKernels("auto")),
        pools(KvLayout(KvShapeOf(weights->config)), sequences, tokens),
        model(weights, kernels, threads),
        experts(*weights, kernels, threads) {}

  SequenceState State(std::vector<int32_t> prompt, int max_tokens = 1 << 10) const {
    SequenceState state;
    state.request_id = "test";
    state.prompt = std::move(prompt);
    state.params.sampling.temperature = 0;
    state.params.max_tokens = max_tokens;
    return state;
  }
  /// A prompt that depends on its seed.
  std::vector<int32_t> Prompt(int64_t tokens, int seed) const {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < tokens; ++i)
      ids.push_back(
          static_cast<int32_t>((i * 7919 + i * i * 31 + seed * 104729) % weights->config.vocab_size));
    return ids;
  }

  ThreadPool threads{1};
  OracleCase oracle;
  std::shared_ptr<const ModelWeights> weights;
  const kernels::KernelTable& kernels;
  BlockPools pools;
  Model model;
  GatedExperts experts;
};

/// All rows of a hand-off, one after the other.
inline std::vector<float> HandOffBytes(const SequenceKv& kv, int64_t tokens) {
  std::vector<float> values;
  for (const RowRange& range : HandOffRows(kv.layout(), tokens)) {
    const int width = kv.layout().pool(range.pool).row_values;
    for (int64_t r = 0; r < range.count; ++r) {
      const float* row = kv.Row(range.pool, range.layer, range.first + r);
      values.insert(values.end(), row, row + width);
    }
  }
  return values;
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace cachalot::testing

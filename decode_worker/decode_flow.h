#pragma once
// Continuous batching of running sequences, over plain structs: no RPC in here. The step thread owns it.
//
//   Join (KV complete, first token known) -> [ Step: one token of every runnable sequence ]* -> finish or Remove
//
// A sequence whose reader lags by `window` tokens waits without holding up the others.

#include <cstdint>
#include <optional>
#include <vector>

#include "common/base/time.h"
#include "common/engine/generation.h"
#include "common/model/forward.h"

namespace cachalot {

/// One output token, or the end of a sequence by an error.
struct TokenOut {
  uint64_t id = 0;
  int64_t index = 0;  // output index
  int32_t token = 0;
  FinishReason finish = FinishReason::kNone;
  Status error;               // not OK: the sequence is over, token means nothing
  std::vector<float> logits;  // [vocab] that chose the token, when the sequence wants them
  std::optional<TokenLogprobs> logprobs;  // of the token, when the sequence wants them
};

struct DecodeOptions {
  int max_batch = 64;    // sequences a step
  int64_t window = 256;  // tokens that may be on their way to a reader
  Duration expert_outage_grace = std::chrono::seconds(5);
};

class DecodeFlow {
 public:
  enum class Progress { kIdle, kStepped, kExpertsAway };

  DecodeFlow(Model& model, ExpertBackend& experts, const Clock& clock, DecodeOptions options);

  /// `kv` holds every token before `first_token`, whose output index is state.emitted.size().
  void Join(uint64_t id, SequenceState state, SequenceKv kv, int32_t first_token);
  /// Ends a sequence and frees its KV; unknown ids are ignored.
  void Remove(uint64_t id);
  /// The reader has everything up to output index `next_index` - 1.
  void Acknowledge(uint64_t id, int64_t next_index);

  /// One step. A sequence that finishes or fails is gone afterwards, its KV freed. kExpertsAway: the experts did not
  /// answer and the step will be tried again, until `expert_outage_grace` has passed since the first such step; then
  /// all sequences end with that error.
  Progress Step(std::vector<TokenOut>& out);

  size_t running() const { return sequences_.size(); }
  size_t last_batch() const { return last_batch_; }

 private:
  struct Sequence {
    uint64_t id;
    SequenceState state;
    SequenceKv kv;
    int32_t token;         // to be fed next
    int64_t next_index;    // output index of the token that comes out
    int64_t acknowledged;  // output tokens that the reader has
    TokenHistory history;  // up to `token`
  };
  Progress ExpertsAway(const Status& status, std::vector<TokenOut>& out);

  Model& model_;
  ExpertBackend& experts_;
  const Clock& clock_;
  const DecodeOptions options_;
  Sampler sampler_;
  std::vector<Sequence> sequences_;
  size_t next_ = 0;  // where the next batch starts, so that more sequences than max_batch take turns
  size_t last_batch_ = 0;
  bool away_ = false;
  TimePoint away_since_;
  std::vector<Segment> segments_;
  std::vector<size_t> batch_;
};

}  // namespace cachalot

#pragma once
// Continuous batching of running sequences, over plain structs: no RPC in here. The step thread owns it.
//
//   Join (KV complete, first token known) -> [ Step: one token of every runnable sequence ]* -> finish or
//   Remove
//
// A sequence whose reader lags by `window` tokens waits without holding up the others. A sequence may join
// with KV for less than its max_tokens: it takes more as it goes on, and when none is free choose_victim.h
// says who gives up its own.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "common/base/time.h"
#include "common/engine/generation.h"
#include "common/model/forward.h"
#include "decode_worker/choose_victim.h"

namespace cachalot {

/// One output token, or the end of a sequence by an error or by preemption.
struct TokenOut {
  uint64_t id = 0;
  int64_t index = 0;  // output index; preempted: of the token that would have come next
  int32_t token = 0;
  FinishReason finish = FinishReason::kNone;
  Status error;               // not OK: the sequence is over, token means nothing
  std::vector<float> logits;  // [vocab] that chose the token, when the sequence wants them
  std::optional<TokenLogprobs> logprobs;  // of the token, when the sequence wants them
  bool preempted = false;                 // the sequence is over here and its KV freed, token means nothing
  bool reader_lags = false;               // preempted: its reader could not have used the KV
};

struct DecodeOptions {
  int max_batch = 64;    // sequences a step
  int64_t window = 256;  // tokens that may be on their way to a reader
  Duration expert_outage_grace = std::chrono::seconds(5);
  Duration step_limit = std::chrono::seconds(5);  // of experts in a step whose end a Remove waits for
};

/// OUT_OF_RANGE, with both numbers, for a sequence whose prompt and max_tokens the pools could not hold if
/// they were empty.
Status CheckHolds(const BlockPools& pools, const SequenceState& state);

class DecodeFlow {
 public:
  enum class Progress { kIdle, kStepped, kExpertsAway, kNoRoom, kInterrupted };
  /// What waits for the end of the step: nothing, a Remove of sequences, or the end of all.
  enum class Awaited { kNothing, kRemove, kStop };
  /// Heard before every call of experts.
  using AtCall = std::function<Awaited()>;

  DecodeFlow(Model& model, ExpertBackend& experts, const Clock& clock, DecodeOptions options,
             AtCall at_call = {});

  /// `kv` holds every token before `first_token`, whose output index is state.emitted.size(). One that is not
  /// `preemptible` must have room for all of its tokens.
  void Join(uint64_t id, SequenceState state, SequenceKv kv, int32_t first_token, bool preemptible = false);
  /// Ends a sequence and frees its KV; unknown ids are ignored.
  void Remove(uint64_t id);
  /// Somebody outside wants KV of `tokens` tokens and there is none: the next Step begins by preempting sequences
  /// that wait for their readers, the youngest first, until as much is free.
  void Reclaim(int64_t tokens) { reclaim_ = std::max(reclaim_, tokens); }
  /// The reader has everything up to output index `next_index` - 1.
  void Acknowledge(uint64_t id, int64_t next_index);

  /// One step. A sequence that finishes, fails or is preempted is gone afterwards, its KV freed; preemptions
  /// are in `out` whatever is returned. kExpertsAway: the experts did not answer and the step will be tried
  /// again, until `expert_outage_grace` has passed since the first call without an answer was begun; then all
  /// sequences end with that error. kNoRoom: all that could run waits for KV that sequences outside this flow
  /// hold. kInterrupted: AtCall said kStop; or kRemove, and experts that answer, but slowly, had taken
  /// `step_limit` of the step: then the next Step does it again, and no Remove interrupts one until it is done.
  Progress Step(std::vector<TokenOut>& out);

  size_t running() const { return sequences_.size(); }
  size_t last_batch() const { return last_batch_; }
  /// At the last step a sequence could have run but for KV, which nobody here could give it.
  bool starved() const { return starved_; }

 private:
  /// Experts that know when they were last asked: from then on they are away if no answer comes. Each call
  /// has a deadline, a step has as many calls as layers: it is interrupted between two of them.
  class AskedExperts final : public ExpertBackend {
   public:
    AskedExperts(ExpertBackend& experts, const Clock& clock, Duration step_limit, AtCall at_call)
        : experts_(experts), clock_(clock), step_limit_(step_limit), at_call_(std::move(at_call)) {}
    /// A step begins.
    void Restart(bool interruptible) {
      taken_ = {};
      interruptible_ = interruptible;
      interrupted_ = false;
    }
    Status Begin(const ExpertCall& call) override;
    Status Wait() override;
    TimePoint asked() const { return asked_; }
    /// The step failed for that, not for the experts.
    bool interrupted() const { return interrupted_; }

   private:
    ExpertBackend& experts_;
    const Clock& clock_;
    const Duration step_limit_;
    const AtCall at_call_;
    TimePoint asked_{};
    Duration taken_{};  // by the calls of this step
    bool interruptible_ = false, interrupted_ = false;
  };
  struct Sequence {
    uint64_t id;
    SequenceState state;
    SequenceKv kv;
    int32_t token;         // to be fed next
    int64_t next_index;    // output index of the token that comes out
    int64_t acknowledged;  // output tokens that the reader has
    TokenHistory history;  // up to `token`
    uint64_t order;        // of joining
    bool preemptible;
  };
  bool Stalled(const Sequence& s) const { return s.next_index - s.acknowledged > options_.window; }
  static bool HasRoom(const Sequence& s) { return s.kv.tokens() < s.kv.capacity(); }
  static bool Grow(Sequence& s);
  void Preempt(size_t at, std::vector<TokenOut>& out);
  void Erase(size_t at);
  void GiveBack(std::vector<TokenOut>& out);
  void MakeRoom(std::vector<TokenOut>& out);
  std::optional<size_t> Victim();
  Progress ExpertsAway(const Status& status, std::vector<TokenOut>& out);

  Model& model_;
  AskedExperts experts_;
  const Clock& clock_;
  const DecodeOptions options_;
  Sampler sampler_;
  std::vector<Sequence> sequences_;
  size_t next_ = 0;  // where the next batch starts, so that more sequences than max_batch take turns
  size_t last_batch_ = 0;
  uint64_t joined_ = 0;
  int64_t reclaim_ = 0;
  bool starved_ = false;
  bool away_ = false;  // the last step failed, and what was in it still waits
  TimePoint away_since_;
  bool interrupted_ = false;  // a step was, and none has been done since
  std::vector<Segment> segments_;
  std::vector<size_t> batch_;
  std::vector<VictimView> views_;
};

}  // namespace cachalot

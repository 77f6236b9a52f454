#pragma once
// The prefill of many requests as one stream of chunks, over plain structs: no RPC in here. The step thread
// owns it.
//
//   Submit -> [ PlanChunk -> Model::Forward -> OnChunk ]* -> NextToken -> OnFirstToken
//
// Several short prompts share a chunk; a long one is spread over many. Jobs of one and the same context are
// computed once: those that come while another waits or runs follow it, and get its rows and its last logits
// (a request for n outputs is n such jobs).
//
// With a prefix cache a job whose context begins as an earlier one did starts behind what is kept of that: it
// is looked up when its first chunk is due, so that it finds what the jobs before it have left.
//
// A job whose sink takes no more rows is held back: chunks go to the others. Its followers want no rows and
// do not wait for its reader: they go on without it, from where it is.

#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "common/engine/generation.h"
#include "common/kv/prefix_store.h"
#include "common/model/forward.h"

namespace cachalot {

/// Hears of one job's progress, on the step thread.
class PrefillSink {
 public:
  virtual ~PrefillSink() = default;

  /// Tokens [from, to) are in `kv`: their compressed rows are final. `logits`, one row a token, only when the
  /// sequence wants them. The last chunk is announced before OnFirstToken.
  /// A job that followed another hears of all that it got as of one chunk; so it does of a cached prefix.
  virtual void OnChunk(const SequenceKv& kv, int64_t from, int64_t to, std::span<const float> logits) = 0;

  /// Behind each OnChunk when the sequence wants them: of prompt token `first` and those that follow, in
  /// order from prompt token 1.
  virtual void OnPromptLogprobs(int64_t /*first*/, std::vector<TokenLogprobs> /*entries*/) {}

  /// How many more rows of `row_bytes` each, of logits or log probabilities, it takes now. Asked before each
  /// chunk of a job that wants rows; with none the job waits until a later Step.
  virtual int64_t RowsWanted(int64_t /*row_bytes*/) const { return std::numeric_limits<int64_t>::max(); }

  /// Before the first OnChunk, when the first `tokens` of the context came from the prefix cache.
  virtual void OnCached(int64_t /*tokens*/) {}

  /// The output token at index emitted.size(), and the finished KV.
  virtual void OnFirstToken(OutputToken first, SequenceKv kv) = 0;

  /// The job is over and its KV is freed.
  virtual void OnError(const Status& status) = 0;
};

struct PrefillJob {
  uint64_t id = 0;
  SequenceState state;
  SequenceKv kv;          // reserved for at least the context, empty
  int64_t max_chunk = 0;  // 0: no limit but the flow's
  std::shared_ptr<PrefillSink> sink;
};

class PrefillFlow {
 public:
  /// `prefixes` may be null: no cache.
  PrefillFlow(Model& model, ExpertBackend& experts, int64_t max_chunk_tokens,
              PrefixStore* prefixes = nullptr);

  /// Follows another job if it can: it needs rows of its own when it wants logits or prompt log
  /// probabilities.
  void Submit(PrefillJob job);
  /// Drops a job and frees its KV; its sink hears nothing more. Its first follower goes on where it was.
  /// Unknown ids are ignored.
  void Cancel(uint64_t id);
  /// Runs one chunk. False when there is nothing to do, or every job is held back by its sink.
  bool Step();
  /// Jobs that will be computed: followers do not count.
  size_t waiting() const { return jobs_.size(); }
  /// Whether Step would run a chunk.
  bool ready() const;
  /// Prompt tokens not yet computed: the load figure for placement.
  int64_t waiting_tokens() const;
  /// Inside Step, from a call of the experts: false when `gone` names all whom the chunk in progress is for.
  /// The experts may fail it then.
  bool ChunkWanted(const std::function<bool(uint64_t id)>& gone) const;
  /// What the last Step ran, whether or not it succeeded.
  int64_t last_chunk_tokens() const { return last_chunk_tokens_; }

 private:
  struct Job {
    PrefillJob request;
    std::vector<int32_t> context;
    int64_t done = 0;
    std::vector<PrefillJob> followers = {};  // of the same context; their KV is empty
    bool begun = false;                      // looked up in the cache
    int64_t cached = 0;                      // tokens that came from there
    std::vector<int64_t> cuts = {};          // where the cache wants its KV, ascending; those to come
  };
  void TakeOver(Job& job);
  void HandDone(const Job& job, PrefillJob& next);
  int64_t RowBytes(const SequenceState& state) const;
  int64_t RowsWanted(const Job& job) const;
  void LeaveHeldLeaders();
  std::vector<int64_t> Plan();
  bool Begin(Job& job);
  void Keep(Job& job);
  void Fail(size_t i, const Status& status);
  void Report(Job& job, int64_t count, std::span<const float> rows);
  void Finish(Job& job, std::span<const float> last_logits);
  void Choose(PrefillJob& request, std::span<const float> last_logits);

  Model& model_;
  ExpertBackend& experts_;
  const int64_t max_chunk_tokens_;
  PrefixStore* const prefixes_;
  Sampler sampler_;
  std::deque<Job> jobs_;
  std::vector<int64_t> take_;  // inside Step: so many tokens of each job
  int64_t last_chunk_tokens_ = 0;
};

}  // namespace cachalot

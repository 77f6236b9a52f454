#pragma once
// What the router's request flow needs of workers: implemented over gRPC (decode_client, prefill_client) and
// in process (the embedded mode). Everything belongs to one loop's thread. All that happens to a request
// arrives in its one queue.

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/engine/generation.h"
#include "common/rpc/async_queue.h"
#include "common/rpc/task.h"

namespace cachalot {

struct FlowEvent {
  enum class Kind {
    kGranted,         // the decode worker reserved the KV
    kFirstToken,      // from the prefill worker: index, token, finish
    kPromptLogits,    // debugging: first_row, logits [rows, vocab]
    kPromptLogprobs,  // logprobs of prompt token first_row and those that follow
    kCommitted,       // the decode worker has the KV of this attempt
    kPrefillFailed,   // error; attempt says which one
    kToken,           // from the decode worker: index, token, finish, logits [vocab] when debugging
    kDecodeFailed,    // error: the lease is gone
    kPreempted,       // the lease is gone because others need its KV; tokens up to index - 1 came before
    kCancelled,       // the client went away
  };
  Kind kind{};
  uint32_t attempt = 0;  // prefill events
  int64_t index = 0;
  int32_t token = 0;
  FinishReason finish = FinishReason::kNone;
  int64_t cached = 0;  // kFirstToken: tokens of the context from the prefill worker's prefix cache
  Status error;
  bool untaken = false;  // kPrefillFailed: the worker had said nothing of this prefill
  bool experts_away = false;  // kPrefillFailed: because experts did not answer the worker for its grace
  int64_t first_row = 0;
  std::vector<float> logits;
  std::vector<TokenLogprobs> logprobs;  // kFirstToken, kToken: of that one, when wanted
  std::shared_ptr<void>
      hold;  // kPromptLogits, kPromptLogprobs: the sender waits while it has too many of these out
};
using FlowQueue = rpc::AsyncQueue<FlowEvent>;

/// A request's hold on a decode worker. Destroying it closes the lease at once.
class DecodeCall {
 public:
  virtual ~DecodeCall() = default;
  /// The client has everything up to output index next_index - 1.
  virtual void Acknowledge(int64_t next_index) = 0;
};

/// A running prefill. Destroying it cancels.
class PrefillCall {
 public:
  virtual ~PrefillCall() = default;
  /// The worker goes on only when the client has taken some of its rows.
  virtual bool waits_for_reader() const { return false; }
};

struct WorkerLoad {
  int64_t running = 0;         // sequences or jobs
  int64_t waiting_tokens = 0;  // prefill
  int64_t free_kv_tokens = 0;
  int64_t leases = 0;  // decode: all that hold KV, running or not
  /// Decode: KV that a sequence gets at first behind its context (FirstKvTokens). Unless it says so: all.
  int64_t reserve_ahead = std::numeric_limits<int64_t>::max();
  bool kv_wanted = false;  // somebody, of whatever router, waits for KV there
};

class DecodeWorker {
 public:
  virtual ~DecodeWorker() = default;
  virtual const std::string& name() const = 0;  // host:port, or "embedded"
  /// Connected, compatible and alive by its heartbeats; else why not.
  virtual Status health() const = 0;
  virtual WorkerLoad load() const = 0;
  /// Asks for a lease; kGranted or kDecodeFailed follow in `queue`.
  virtual std::unique_ptr<DecodeCall> Open(const SequenceState& state, std::shared_ptr<FlowQueue> queue) = 0;
};

struct PrefillOptions {
  uint32_t attempt = 1;
  int64_t max_chunk_tokens = 0;  // 0: as the worker is configured
};

class PrefillWorker {
 public:
  virtual ~PrefillWorker() = default;
  virtual const std::string& name() const = 0;
  virtual Status health() const = 0;
  virtual WorkerLoad load() const = 0;
  /// Another one when it has restarted: its prefix cache is empty then.
  virtual uint64_t life() const { return 0; }
  /// Prefills into a granted lease of a decode worker of the same cluster; kFirstToken, then kCommitted
  /// (unless the first token is the last), or kPrefillFailed follow in `queue`.
  virtual std::unique_ptr<PrefillCall> Start(const SequenceState& state, DecodeCall& lease,
                                             PrefillOptions options, std::shared_ptr<FlowQueue> queue) = 0;
};

}  // namespace cachalot

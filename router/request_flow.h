#pragma once
// THE story of a request, in the steps of docs/architecture.md (numbered the same in request_flow.cc):
//
//   3 place -> 4 lease on a decode worker -> 5 prefill, pushed to it -> 6 tokens -> 8 to the client -> 9
//   release
//
// with its three ways back: a prefill that fails is tried again elsewhere under the same lease (next
// attempt); a decode worker that fails is replaced by another pair, which prefills prompt + tokens already
// sent and goes on behind them; a request that its decode worker preempts waits in a line for KV, then goes
// on in the same way. Workers are interfaces: the same flow serves a cluster and the embedded mode.

#include <memory>
#include <optional>

#include "common/base/time.h"
#include "common/metrics/registry.h"
#include "common/rpc/server_call.h"
#include "router/prefix_locality.h"
#include "router/resume_line.h"
#include "router/worker_api.h"
#include "router/worker_pool.h"

namespace cachalot {

/// Where the output goes. False: the client is gone.
class FlowSink {
 public:
  virtual ~FlowSink() = default;
  /// The request holds its KV: from here on the client sees it accepted.
  virtual rpc::Task<bool> Started() = 0;
  /// Consecutive output tokens; the last one may be the end of the output.
  virtual rpc::Task<bool> Tokens(std::vector<int32_t> tokens) = 0;
  /// Debugging: consecutive rows of logits.
  virtual rpc::Task<bool> Logits(int64_t first_row, std::vector<float> rows) = 0;

  /// Before Tokens, when the sequence wants them: of each of its tokens.
  virtual void Logprobs(std::vector<TokenLogprobs> /*of_next_tokens*/) {}
  /// When the sequence wants them: of prompt token `first` and those that follow, in order from prompt
  /// token 1.
  virtual rpc::Task<bool> PromptLogprobs(int64_t /*first*/, std::vector<TokenLogprobs> /*entries*/) {
    co_return true;
  }
  /// After Tokens: the output is over, whatever the workers would add. The request ends at once, as stopped.
  virtual bool Complete() const { return false; }
};

/// What requests of one prompt (the choices of a client's request) share: they go to one prefill worker if
/// they can, which computes the prompt once for all that come together.
struct Siblings {
  std::optional<size_t> prefill_worker;
};

struct FlowOptions {
  // Without those that no worker took.
  int max_prefill_attempts = 4;  // a lease
  int max_pairs = 4;             // leases a request
  /// How long a new request waits for a usable decode worker.
  Duration placement_wait = std::chrono::seconds(5);
  /// The same for one that the client has seen accepted, and for its prefill worker: as long as the restart of
  /// the only worker may take.
  Duration resume_wait = std::chrono::seconds(10);
  /// How long a decode worker may take to answer a request for a lease; then another is asked.
  Duration lease_wait = std::chrono::seconds(5);
  /// How long the first of the line believes reports that no worker has KV for it; then it asks one, and
  /// doubles this.
  Duration resume_patience = std::chrono::seconds(1);
  /// How long a client may take none of the prompt's rows while its prefill waits for that and others wait for the KV.
  Duration reader_patience = std::chrono::seconds(5);
  /// How long full prefill workers may go on refusing an accepted request, without a token in between. The round of
  /// asking them all that runs then, `kv_wait` each at the most, is its last.
  Duration prefill_patience = std::chrono::seconds(30);
  /// Requests at once; one more is refused with RESOURCE_EXHAUSTED.
  int64_t max_requests = 16384;
};

struct FlowCounters {
  int64_t prefill_retries = 0, decode_failovers = 0, preemptions = 0;
  int64_t lease_retries = 0;  // pairs that ended before they had a lease, and others were asked
};

struct FlowContext {
  rpc::Loop* loop = nullptr;
  WorkerPool<DecodeWorker>* decode = nullptr;
  WorkerPool<PrefillWorker>* prefill = nullptr;
  FlowOptions options;
  FlowCounters counters;
  /// Changes when the workers change to another model (ClusterView): requests of before end UNAVAILABLE rather
  /// than go on there.
  uint64_t generation = 0;
  // Exported, when set.
  Counter *preemptions = nullptr, *prefill_retries = nullptr, *decode_failovers = nullptr,
          *lease_retries = nullptr;
  ResumeLine line;
  int64_t running = 0;  // requests
  PrefixLocality prefixes;
};

/// UNAVAILABLE, for a request of before a change of FlowContext's generation.
inline Status ChangedModel() {
  return Unavailable("the workers have changed to another model since the request began: send it again");
}

struct FlowResult {
  FinishReason finish = FinishReason::kNone;
  int64_t output_tokens = 0;  // emitted before included
  int64_t cached_tokens = 0;  // of the first prefill's context, from a prefix cache
};

/// Runs an admitted request to its end. `cancel` stops it, as does `deadline`. Everything that it holds is
/// released when it returns, on whatever path. `siblings` may be null.
rpc::Task<StatusOr<FlowResult>> RunRequest(FlowContext* context, SequenceState state, FlowSink* sink,
                                           PrefillOptions options, rpc::CancelScope* cancel,
                                           TimePoint deadline, Siblings* siblings = nullptr);

}  // namespace cachalot

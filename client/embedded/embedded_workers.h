#pragma once
// The prefill and decode flows of one process behind the router's worker interfaces: what `cachalot serve` runs. One
// engine thread steps both flows over one model; KV goes from prefill to decode by moving the handle.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "client/embedded/embedded_model.h"
#include "common/metrics/registry.h"
#include "decode_worker/decode_flow.h"
#include "prefill_worker/prefill_flow.h"
#include "router/worker_api.h"

namespace cachalot {

class EmbeddedEngine {
 public:
  /// Results are posted to `loop`, on whose thread the workers are used. Both must outlive this.
  EmbeddedEngine(EmbeddedModel* embedded, rpc::Loop* loop, int64_t max_chunk_tokens);
  /// Stops the engine thread; running sequences are dropped.
  ~EmbeddedEngine();

  std::unique_ptr<DecodeWorker> MakeDecodeWorker();
  std::unique_ptr<PrefillWorker> MakePrefillWorker();
  /// Of the prefix cache, if there is one. The embedded model must outlive the registry's last scrape.
  void ExportMetrics(MetricsRegistry& registry) const;

 private:
  class Sequence;  // one request, shared by the loop and the engine thread
  class Lease;
  class Sink;
  class Decode;
  class Prefill;
  /// The way back for rows that a reader has taken, who may outlive the engine.
  struct Returns {
    std::mutex mutex;
    EmbeddedEngine* engine;  // null: gone
  };

  void Post(std::function<void()> work);
  void Run();
  void Deliver(std::shared_ptr<Sequence> sequence, FlowEvent event);

  EmbeddedModel* embedded_;
  rpc::Loop* loop_;
  const SteadyClock clock_;
  const std::shared_ptr<Returns> returns_;
  PrefillFlow prefill_;  // engine thread
  DecodeFlow decode_;    // engine thread
  std::vector<std::shared_ptr<Sequence>> running_;  // engine thread

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::function<void()>> posted_;
  bool stop_ = false;
  uint64_t next_id_ = 1;  // loop thread
  std::thread thread_;
};

}  // namespace cachalot

#include "client/embedded/embedded_workers.h"

#include <algorithm>

#include "prefill_worker/chunk_planner.h"
#include "prefill_worker/prefix_cache_metrics.h"
#include "prefill_worker/row_messages.h"

namespace cachalot {
namespace {

// Of a request's rows, computed ahead of what its reader has taken.
constexpr int64_t kUnreadRowBytes = 4 << 20;

}  // namespace

using Kind = FlowEvent::Kind;

class EmbeddedEngine::Sequence {
 public:
  uint64_t id = 0;
  SequenceState state;
  std::shared_ptr<FlowQueue> queue;  // loop thread
  bool closed = false;               // loop thread
  SequenceKv kv;                     // whose turn it is: loop until Start, engine then
};

class EmbeddedEngine::Lease final : public DecodeCall {
 public:
  Lease(EmbeddedEngine* engine, std::shared_ptr<Sequence> sequence)
      : engine_(engine), sequence_(std::move(sequence)) {}
  ~Lease() override {
    sequence_->closed = true;
    engine_->Post([engine = engine_, sequence = sequence_] {
      engine->prefill_.Cancel(sequence->id);
      engine->decode_.Remove(sequence->id);
      sequence->kv.Release();
      std::erase(engine->running_, sequence);
    });
  }
  void Acknowledge(int64_t next_index) override {
    engine_->Post([engine = engine_, id = sequence_->id, next_index] { engine->decode_.Acknowledge(id, next_index); });
  }
  const std::shared_ptr<Sequence>& sequence() const { return sequence_; }

 private:
  EmbeddedEngine* engine_;
  std::shared_ptr<Sequence> sequence_;
};

/// On the engine thread: chunks, then the hand-over to decode.
class EmbeddedEngine::Sink final : public PrefillSink {
 public:
  Sink(EmbeddedEngine* engine, std::shared_ptr<Sequence> sequence, uint32_t attempt)
      : engine_(engine), sequence_(std::move(sequence)), attempt_(attempt) {}

  void OnChunk(const SequenceKv&, int64_t from, int64_t to, std::span<const float> logits) override {
    if (logits.empty()) return;
    SplitLogits(from, to, logits, [this](int64_t first, int64_t, std::span<const float> rows) {
      FlowEvent event = Event(Kind::kPromptLogits);
      event.first_row = first;
      event.logits.assign(rows.begin(), rows.end());
      DeliverRows(std::move(event), static_cast<int64_t>(rows.size_bytes()));
    });
  }
  void OnPromptLogprobs(int64_t first, std::vector<TokenLogprobs> entries) override {
    SplitLogprobs(first, std::move(entries), [this](int64_t at, std::vector<TokenLogprobs> piece, int64_t bytes) {
      FlowEvent event = Event(Kind::kPromptLogprobs);
      event.first_row = at;
      event.logprobs = std::move(piece);
      DeliverRows(std::move(event), bytes);
    });
  }
  int64_t RowsWanted(int64_t row_bytes) const override {
    return RowsThatFit(*unread_, kUnreadRowBytes, row_bytes);
  }
  void OnCached(int64_t tokens) override { cached_ = tokens; }
  void OnFirstToken(OutputToken first, SequenceKv kv) override {
    const int32_t token = first.token;
    const FinishReason finish = first.finish;
    FlowEvent event = Event(Kind::kFirstToken);
    event.index = static_cast<int64_t>(sequence_->state.emitted.size());
    event.token = token;
    event.finish = finish;
    event.cached = cached_;
    if (first.logprobs) event.logprobs.push_back(std::move(*first.logprobs));
    engine_->Deliver(sequence_, std::move(event));
    if (finish != FinishReason::kNone) return;
    engine_->decode_.Join(sequence_->id, sequence_->state, std::move(kv), token);
    engine_->running_.push_back(sequence_);
    engine_->Deliver(sequence_, Event(Kind::kCommitted));
  }
  void OnError(const Status& status) override {
    FlowEvent event = Event(Kind::kPrefillFailed);
    event.error = status;
    engine_->Deliver(sequence_, std::move(event));
  }

 private:
  FlowEvent Event(Kind kind) const {
    FlowEvent event;
    event.kind = kind;
    event.attempt = attempt_;
    return event;
  }

  /// They count as unread until the event is gone.
  void DeliverRows(FlowEvent event, int64_t bytes) {
    *unread_ += bytes;
    event.hold = std::shared_ptr<void>(nullptr, [returns = engine_->returns_, unread = unread_, bytes](void*) {
      std::lock_guard lock(returns->mutex);
      if (returns->engine) returns->engine->Post([unread, bytes] { *unread -= bytes; });
    });
    engine_->Deliver(sequence_, std::move(event));
  }

  EmbeddedEngine* engine_;
  std::shared_ptr<Sequence> sequence_;
  const uint32_t attempt_;
  int64_t cached_ = 0;
  const std::shared_ptr<int64_t> unread_ = std::make_shared<int64_t>(0);  // bytes; engine thread
};

class EmbeddedEngine::Decode final : public DecodeWorker {
 public:
  explicit Decode(EmbeddedEngine* engine) : engine_(engine) {}
  const std::string& name() const override { return name_; }
  Status health() const override { return OkStatus(); }
  WorkerLoad load() const override { return {0, 0, engine_->embedded_->pools().free_tokens()}; }

  std::unique_ptr<DecodeCall> Open(const SequenceState& state, std::shared_ptr<FlowQueue> queue) override {
    auto sequence = std::make_shared<Sequence>();
    sequence->id = engine_->next_id_++;
    sequence->state = state;
    sequence->queue = std::move(queue);
    FlowEvent event;
    event.kind = Kind::kGranted;
    event.error = Reserve(state, &sequence->kv);
    if (!event.error.ok()) event.kind = Kind::kDecodeFailed;
    sequence->queue->Push(std::move(event));
    return std::make_unique<Lease>(engine_, std::move(sequence));
  }

 private:
  /// All that the sequence may need: nothing is preempted in one process, where to prefill again would take
  /// the same thread from all others.
  Status Reserve(const SequenceState& state, SequenceKv* kv) {
    BlockPools& pools = engine_->embedded_->pools();
    RETURN_IF_ERROR(CheckHolds(pools, state));
    ASSIGN_OR_RETURN(*kv, pools.Reserve(state.MaxTokens()));
    return OkStatus();
  }

  EmbeddedEngine* engine_;
  const std::string name_ = "embedded";
};

class EmbeddedEngine::Prefill final : public PrefillWorker {
 public:
  explicit Prefill(EmbeddedEngine* engine) : engine_(engine) {}
  const std::string& name() const override { return name_; }
  Status health() const override { return OkStatus(); }
  WorkerLoad load() const override { return {}; }

  /// The lease cancels: the KV is its own.
  std::unique_ptr<PrefillCall> Start(const SequenceState&, DecodeCall& lease, PrefillOptions options,
                                     std::shared_ptr<FlowQueue>) override {
    auto sequence = static_cast<Lease&>(lease).sequence();
    engine_->Post([engine = engine_, sequence, options] {
      if (!sequence->kv.valid()) {  // an earlier attempt has lost it
        auto kv = engine->embedded_->pools().Reserve(sequence->state.MaxTokens());
        if (!kv.ok()) return Sink(engine, sequence, options.attempt).OnError(kv.status());
        sequence->kv = std::move(*kv);
      }
      engine->prefill_.Submit({sequence->id, sequence->state, std::move(sequence->kv), options.max_chunk_tokens,
                               std::make_shared<Sink>(engine, sequence, options.attempt)});
    });
    return std::make_unique<PrefillCall>();
  }

 private:
  EmbeddedEngine* engine_;
  const std::string name_ = "embedded";
};

EmbeddedEngine::EmbeddedEngine(EmbeddedModel* embedded, rpc::Loop* loop, int64_t max_chunk_tokens)
    : embedded_(embedded), loop_(loop), returns_(new Returns{{}, this}),
      prefill_(embedded->model(), embedded->experts(), max_chunk_tokens, embedded->prefixes()),
      decode_(embedded->model(), embedded->experts(), clock_, {}), thread_([this] { Run(); }) {}

EmbeddedEngine::~EmbeddedEngine() {
  {
    std::lock_guard lock(returns_->mutex);
    returns_->engine = nullptr;
  }
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

std::unique_ptr<DecodeWorker> EmbeddedEngine::MakeDecodeWorker() { return std::make_unique<Decode>(this); }
std::unique_ptr<PrefillWorker> EmbeddedEngine::MakePrefillWorker() { return std::make_unique<Prefill>(this); }

void EmbeddedEngine::ExportMetrics(MetricsRegistry& registry) const {
  const PrefixStore* prefixes = embedded_->prefixes();
  if (!prefixes) return;
  const auto metrics = std::make_shared<PrefixCacheMetrics>(registry, "cachalot_serve");
  registry.AddCollector([metrics, prefixes] { metrics->Refresh(prefixes->stats()); });
}

void EmbeddedEngine::Post(std::function<void()> work) {
  {
    std::lock_guard lock(mutex_);
    posted_.push_back(std::move(work));
  }
  wake_.notify_one();
}

void EmbeddedEngine::Deliver(std::shared_ptr<Sequence> sequence, FlowEvent event) {
  auto shared = std::make_shared<FlowEvent>(std::move(event));
  loop_->Post([sequence = std::move(sequence), shared] {
    if (!sequence->closed) sequence->queue->Push(std::move(*shared));
  });
}

void EmbeddedEngine::Run() {
  std::vector<std::function<void()>> work;
  std::vector<TokenOut> out;
  bool idle = false;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (idle) wake_.wait(lock, [this] { return stop_ || !posted_.empty(); });
      if (stop_) return;
      work.swap(posted_);
    }
    for (auto& item : work) item();
    work.clear();
    const bool prefilled = prefill_.Step();
    const bool stepped = decode_.Step(out) == DecodeFlow::Progress::kStepped;
    idle = !prefilled && !stepped;
    for (TokenOut& result : out) {
      const auto at = std::find_if(running_.begin(), running_.end(), [&](const auto& s) { return s->id == result.id; });
      if (at == running_.end()) continue;
      const std::shared_ptr<Sequence> sequence = *at;
      FlowEvent event;
      event.kind = result.error.ok() ? Kind::kToken : Kind::kDecodeFailed;
      event.index = result.index;
      event.token = result.token;
      event.finish = result.finish;
      event.error = result.error;
      event.logits = std::move(result.logits);
      if (result.logprobs) event.logprobs.push_back(std::move(*result.logprobs));
      if (!result.error.ok() || result.finish != FinishReason::kNone) running_.erase(at);
      Deliver(sequence, std::move(event));
    }
    out.clear();
  }
}

}  // namespace cachalot

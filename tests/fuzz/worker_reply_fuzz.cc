// What decode and prefill workers say to a router, over real gRPC: SessionResponses and PrefillEvents in any
// order while a request runs. First byte: what the request wants. Then records: even kinds go on the Session,
// odd ones on the prefill call. When they are used up the workers are honest, so that every request must come
// to its end.

#include <grpcpp/grpcpp.h>

#include <limits>
#include <mutex>

#include "common/cluster/assets.h"
#include "common/rpc/block_on.h"
#include "router/decode_client.h"
#include "router/frontend.h"
#include "router/prefill_client.h"
#include "router/request_flow.h"
#include "tests/fuzz/quiet_logs.h"
#include "tests/fuzz/records.h"
#include "tests/support/oracle.h"
#include "tests/support/patience.h"

namespace cachalot::fuzz {
namespace {

using testing::kPatience;

constexpr uint8_t kWantsLogprobs = 1, kWantsPromptLogprobs = 2, kWantsLogits = 4;
constexpr size_t kMostRecords = 12;
// Handles below it mean the request's own.
constexpr uint64_t kOwnHandles = 8;
constexpr uint8_t kOnSession = 0, kOnPrefill = 1;

/// What the workers say during one request.
struct Script {
  std::string request_id;
  std::vector<Record> records;
  size_t next = 0;
  uint64_t handle = 0;  // of the last Open

  bool NextIs(uint8_t kind) const { return next < records.size() && records[next].kind % 2 == kind; }
};

v1::SessionResponse ForHandle(v1::SessionResponse response, uint64_t handle) {
  const auto mine = [handle](uint64_t h) { return h < kOwnHandles ? handle : h; };
  if (response.has_granted()) response.mutable_granted()->set_handle(mine(response.granted().handle()));
  if (response.has_failed()) response.mutable_failed()->set_handle(mine(response.failed().handle()));
  if (response.has_preempted()) response.mutable_preempted()->set_handle(mine(response.preempted().handle()));
  if (response.has_step())
    for (uint64_t& h : *response.mutable_step()->mutable_handles()) h = mine(h);
  return response;
}

void AddLogprob(v1::TokenLogprobs* logprobs) {
  logprobs->set_logprob(-1);
  logprobs->add_top_ids(1);
  logprobs->add_top_logprobs(-1);
}

class DescribeSide final : public v1::Cluster::Service {
 public:
  explicit DescribeSide(v1::Role role) : role_(role) {}
  grpc::Status Describe(grpc::ServerContext*, const v1::DescribeRequest*, v1::Description* reply) override {
    reply->set_role(role_);
    reply->set_epoch(1);
    reply->mutable_compat()->set_weights("abc");
    reply->mutable_load()->set_free_kv_tokens(1 << 20);
    return grpc::Status::OK;
  }

 private:
  const v1::Role role_;
};

using SessionStream = grpc::ServerReaderWriter<v1::SessionResponse, v1::SessionRequest>;

/// Both workers; they share the script.
class Workers final : public v1::Decode::Service, public v1::Prefill::Service {
 public:
  void Begin(std::shared_ptr<Script> script) {
    std::lock_guard lock(mutex_);
    script_ = std::move(script);
  }

  grpc::Status Session(grpc::ServerContext*, SessionStream* stream) override {
    v1::SessionRequest request;
    while (stream->Read(&request)) {
      std::lock_guard lock(mutex_);
      if (request.has_hello()) {
        session_ = stream;
        v1::SessionResponse reply;
        reply.mutable_hello()->mutable_load()->set_free_kv_tokens(1 << 20);
        stream->Write(reply);
      }
      if (request.has_open() && script_ && request.open().state().request_id() == script_->request_id)
        Open(stream, request.open().handle());
    }
    std::lock_guard lock(mutex_);
    if (session_ == stream) session_ = nullptr;
    return grpc::Status::OK;
  }

  grpc::Status Prefill(grpc::ServerContext*, const v1::PrefillRequest* request,
                       grpc::ServerWriter<v1::PrefillEvent>* call) override {
    const std::string& id = request->state().request_id();
    for (;;) {
      v1::PrefillEvent event;
      {
        std::lock_guard lock(mutex_);
        if (!script_ || script_->request_id != id || script_->next >= script_->records.size()) break;
        const Record record = script_->records[script_->next++];
        if (record.kind % 2 == kOnSession) {
          Say(record);
          continue;
        }
        if (!Parse(record, &event)) continue;
      }
      if (!call->Write(event)) return grpc::Status::CANCELLED;
    }
    return FinishHonestly(request->state(), call);
  }

 private:
  static bool Parse(const Record& record, google::protobuf::MessageLite* message) {
    return message->ParseFromArray(record.bytes.data(), static_cast<int>(record.bytes.size()));
  }
  void Say(const Record& record) {
    v1::SessionResponse response;
    if (session_ && Parse(record, &response))
      session_->Write(ForHandle(std::move(response), script_->handle));
  }
  void Open(SessionStream* stream, uint64_t handle) {
    script_->handle = handle;
    while (script_->NextIs(kOnSession)) Say(script_->records[script_->next++]);
    v1::SessionResponse granted;
    granted.mutable_granted()->set_handle(handle);
    granted.mutable_granted()->mutable_lease()->set_id(1);
    stream->Write(granted);
  }
  grpc::Status FinishHonestly(const v1::SequenceState& state, grpc::ServerWriter<v1::PrefillEvent>* call) {
    const int64_t first = state.emitted_size(), end = state.params().max_tokens();
    const auto finish = [&](int64_t index) {
      return index + 1 == end ? v1::STEP_FINISH_LENGTH : v1::STEP_FINISH_NONE;
    };
    v1::PrefillEvent event;
    if (state.params().has_prompt_logprobs()) {
      event.mutable_prompt_logprobs()->set_first(1);
      for (int i = 1; i < state.prompt_size(); ++i)
        AddLogprob(event.mutable_prompt_logprobs()->add_entries());
      call->Write(event);
    }
    event.mutable_first_token()->set_token(7);
    event.mutable_first_token()->set_finish(finish(first));
    if (state.params().has_logprobs()) AddLogprob(event.mutable_first_token()->mutable_logprobs());
    call->Write(event);
    if (finish(first) != v1::STEP_FINISH_NONE) return grpc::Status::OK;
    event.mutable_committed()->set_tokens(first + state.prompt_size());
    if (!call->Write(event)) return grpc::Status::CANCELLED;
    std::lock_guard lock(mutex_);
    for (int64_t index = first + 1; index < end && session_ && script_; ++index) {
      v1::SessionResponse response;
      v1::StepBatch& step = *response.mutable_step();
      step.add_handles(script_->handle);
      step.add_indices(index);
      step.add_tokens(8);
      step.add_finish(finish(index));
      if (state.params().has_logprobs()) AddLogprob(step.add_logprobs());
      session_->Write(response);
    }
    return grpc::Status::OK;
  }

  std::mutex mutex_;
  std::shared_ptr<Script> script_;
  SessionStream* session_ = nullptr;  // of the last hello
};

/// What the client would get.
class Sink final : public FlowSink {
 public:
  Sink(const Tokenizer* tokenizer, const SequenceState& state)
      : text_(tokenizer, {"stop"}, 0), state_(state), next_(static_cast<int64_t>(state.emitted.size())) {}

  rpc::Task<bool> Started() override {
    CHECK(!started_);
    started_ = true;
    co_return true;
  }
  void Logprobs(std::vector<TokenLogprobs> of_next) override { logprobs_ += of_next.size(); }
  rpc::Task<bool> Tokens(std::vector<int32_t> tokens) override {
    CHECK(started_ && !tokens.empty());
    next_ += static_cast<int64_t>(tokens.size());
    CHECK_MSG(next_ <= state_.params.max_tokens, "more tokens than the request allows");
    if (state_.params.sampling.logprobs != kNoLogprobs) CHECK(logprobs_ == tokens.size());
    logprobs_ = 0;
    for (int32_t token : tokens)
      if (!text_.stopped()) (void)text_.Push(token);
    co_return true;
  }
  rpc::Task<bool> PromptLogprobs(int64_t first, std::vector<TokenLogprobs> entries) override {
    CHECK(first == next_prompt_ && !entries.empty());
    next_prompt_ += static_cast<int64_t>(entries.size());
    CHECK_MSG(next_prompt_ <= static_cast<int64_t>(state_.prompt.size()), "more than the prompt has");
    co_return true;
  }
  rpc::Task<bool> Logits(int64_t, std::vector<float>) override { co_return true; }

  int64_t next() const { return next_; }

 private:
  OutputText text_;
  const SequenceState& state_;
  int64_t next_, next_prompt_ = 1;
  size_t logprobs_ = 0;
  bool started_ = false;
};

/// A router's clients and flow in front of the two workers, for the whole process.
class Router {
 public:
  Router() {
    auto assets = ReadModelAssets(testing::DemoDirectory());
    CHECK_MSG(assets.ok(), StatusMessage(assets.status()));
    front_ = std::move(*Frontend::Make(*assets));
    const std::string decode = Listen(&decode_description_, static_cast<v1::Decode::Service*>(&workers_));
    const std::string prefill = Listen(&prefill_description_, static_cast<v1::Prefill::Service*>(&workers_));
    DecodeClientOptions decode_options;
    decode_options.reconnect_delay = std::chrono::milliseconds(1);
    decode_options.silence_limit = kPatience;  // they send no heartbeats
    PrefillClientOptions prefill_options;
    prefill_options.describe_interval = std::chrono::milliseconds(50);
    context_.loop = &loop_;
    context_.decode = &decode_;
    context_.prefill = &prefill_;
    context_.options.max_pairs = 2;
    context_.options.max_prefill_attempts = 3;
    context_.options.resume_patience = std::chrono::milliseconds(1);
    auto decode_client = std::make_unique<DecodeClient>(&loop_, decode, 42, &cluster_, decode_options);
    auto prefill_client = std::make_unique<PrefillClient>(&loop_, prefill, &cluster_, prefill_options);
    loop_.Start();
    CHECK(loop_.Spawn(decode_client->Run()) && loop_.Spawn(prefill_client->Run()));
    decode_.Add(std::move(decode_client));
    prefill_.Add(std::move(prefill_client));
  }
  ~Router() {
    loop_.Shutdown(Duration::zero());
    CHECK(loop_.Join(loop_.Now() + kPatience));
    for (auto& server : servers_) server->Shutdown(std::chrono::system_clock::now());
  }

  void Run(uint8_t wants, std::vector<Record> records) {
    CHECK(rpc::BlockOn(&loop_, AwaitWorkers(), 2 * kPatience, "both workers").ok());
    auto script = std::make_shared<Script>();
    script->request_id = "script " + std::to_string(++scripts_);
    script->records = std::move(records);
    SequenceState state;
    state.request_id = script->request_id;
    state.prompt = {1, 2, 3};
    state.emitted = {4};
    state.params.max_tokens = 6;
    if (wants & kWantsLogprobs) state.params.sampling.logprobs = 1;
    if (wants & kWantsPromptLogprobs) state.params.prompt_logprobs = 1;
    state.want_logits = wants & kWantsLogits;
    workers_.Begin(script);
    Sink sink(front_->tokenizer(), state);
    const auto result = rpc::BlockOn(&loop_, Request(state, &sink), 3 * kPatience, "a request");
    workers_.Begin(nullptr);
    if (result.ok()) {
      CHECK(result->finish != FinishReason::kNone && result->output_tokens == sink.next());
      return;
    }
    const int code = static_cast<int>(result.status().code());
    CHECK_MSG(code > 0 && code <= 16, "no code that a client knows: " + std::to_string(code));
    CHECK_MSG(result.status().code() != StatusCode::kDeadlineExceeded, "the request hangs");
  }

 private:
  std::string Listen(grpc::Service* description, grpc::Service* service) {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(description);
    builder.RegisterService(service);
    servers_.push_back(builder.BuildAndStart());
    CHECK(servers_.back() && port > 0);
    return "127.0.0.1:" + std::to_string(port);
  }
  rpc::Task<Status> AwaitWorkers() {
    while (decode_.usable() == 0 || prefill_.usable() == 0)
      co_await rpc::SleepFor(&loop_, std::chrono::milliseconds(1));
    co_return OkStatus();
  }
  rpc::Task<StatusOr<FlowResult>> Request(SequenceState state, Sink* sink) {
    rpc::CancelScope scope;
    StatusOr<FlowResult> result =
        co_await RunRequest(&context_, std::move(state), sink, {}, &scope, loop_.Now() + kPatience);
    co_return result;
  }

  Workers workers_;
  DescribeSide decode_description_{v1::ROLE_DECODE}, prefill_description_{v1::ROLE_PREFILL};
  std::vector<std::unique_ptr<grpc::Server>> servers_;
  std::unique_ptr<Frontend> front_;
  rpc::Loop loop_{{.name = "router"}};
  ClusterView cluster_;
  WorkerPool<DecodeWorker> decode_;
  WorkerPool<PrefillWorker> prefill_;
  FlowContext context_;
  uint64_t scripts_ = 0;
};

v1::SessionResponse Granted(uint64_t lease) {
  v1::SessionResponse response;
  response.mutable_granted()->mutable_lease()->set_id(lease);
  response.mutable_granted()->mutable_load()->set_free_kv_tokens(100);
  return response;
}

v1::SessionResponse Step(int64_t index, int handles = 1) {
  v1::SessionResponse response;
  v1::StepBatch& step = *response.mutable_step();
  for (int i = 0; i < handles; ++i) step.add_handles(static_cast<uint64_t>(i) * 100);
  for (int i = 0; i < handles; ++i) step.add_indices(index);
  for (int i = 0; i < handles; ++i) step.add_tokens(5 + i);
  for (int i = 0; i < handles; ++i) step.add_finish(v1::STEP_FINISH_NONE);
  return response;
}

v1::SessionResponse Failed(int code) {
  v1::SessionResponse response;
  response.mutable_failed()->set_code(code);
  response.mutable_failed()->set_message("no");
  return response;
}

v1::PrefillEvent FirstToken(int32_t token, v1::StepFinish finish = v1::STEP_FINISH_NONE) {
  v1::PrefillEvent event;
  event.mutable_first_token()->set_token(token);
  event.mutable_first_token()->set_finish(finish);
  AddLogprob(event.mutable_first_token()->mutable_logprobs());
  return event;
}

}  // namespace

std::vector<Seed> Seeds() {
  v1::PrefillEvent progress, committed, prompt, logits, beyond, before;
  progress.mutable_progress()->set_tokens_done(2);
  committed.mutable_committed()->set_tokens(4);
  prompt.mutable_prompt_logprobs()->set_first(1);
  AddLogprob(prompt.mutable_prompt_logprobs()->add_entries());
  beyond = before = prompt;
  for (int i = 0; i < 4; ++i) AddLogprob(beyond.mutable_prompt_logprobs()->add_entries());
  before.mutable_prompt_logprobs()->set_first(std::numeric_limits<int64_t>::min());
  logits.mutable_logits()->set_rows(1);
  logits.mutable_logits()->set_values(std::string(16, '\1'));
  v1::SessionResponse preempted, short_step = Step(2, 3), beat, more_logprobs = Step(2), outside = Step(2);
  preempted.mutable_preempted()->set_next_index(2);
  short_step.mutable_step()->mutable_tokens()->RemoveLast();
  beat.mutable_heartbeat()->mutable_load()->set_free_kv_tokens(-5);
  AddLogprob(more_logprobs.mutable_step()->add_logprobs());
  more_logprobs.mutable_step()->mutable_logprobs(0)->add_top_ids(2);
  outside.mutable_step()->set_tokens(0, -7);

  std::vector<Seed> seeds;
  const auto seed = [&](const char* name, uint8_t wants, const auto&... messages) {
    std::string input(1, static_cast<char>(wants));
    const auto add = [&](const auto& message) {
      constexpr bool prefill = std::is_same_v<std::decay_t<decltype(message)>, v1::PrefillEvent>;
      AddRecord(&input, prefill ? kOnPrefill : kOnSession, message);
    };
    (add(messages), ...);
    seeds.push_back({name, input});
  };
  seed("honest", 0);
  seed("granted_twice", 0, Granted(1), Granted(2), FirstToken(5), Granted(3), committed);
  seed("step_lengths", 0, Granted(1), FirstToken(5), committed, short_step);
  seed("step_overtakes", kWantsLogprobs, progress, Step(2), Step(3), FirstToken(5), Step(3));
  seed("step_gap", 0, FirstToken(5), Step(4));
  seed("others", 0, Step(2, 5), beat, FirstToken(5), Step(2, 5));
  seed("failed_late", 0, Granted(1), FirstToken(5), committed, Failed(14));
  seed("failed_early", 0, Failed(8), Failed(8));
  seed("failed_code", 0, FirstToken(5), Failed(0), Failed(77));
  seed("preempted", 0, FirstToken(5), committed, Step(2), preempted);
  seed("preempted_first", 0, preempted, progress, preempted, FirstToken(5));
  seed("ends_at_once", 0, FirstToken(5, v1::STEP_FINISH_STOP), Step(2));
  seed("committed_twice", 0, committed, committed, FirstToken(5), FirstToken(6));
  seed("prompt_logprobs", kWantsPromptLogprobs | kWantsLogprobs, prompt, prompt, FirstToken(5),
       more_logprobs);
  seed("prompt_beyond", kWantsPromptLogprobs, beyond, FirstToken(5));
  seed("prompt_before", kWantsPromptLogprobs, before, FirstToken(5));
  seed("logits", kWantsLogits, logits, FirstToken(5), Step(2));
  seed("token_outside", 0, FirstToken(1 << 30), committed, outside);
  seed("too_many", 0, FirstToken(5), Step(2), Step(3), Step(4), Step(5), Step(6), Step(7));
  return seeds;
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cachalot;
  fuzz::QuietLogs();
  if (size == 0) return 0;
  static fuzz::Router router;
  router.Run(data[0], fuzz::ReadRecords(fuzz::Text(data + 1, size - 1), fuzz::kMostRecords));
  return 0;
}

// What a router says to a decode worker, over real gRPC: SessionRequests in any order. First byte: bit 0,
// whether a Hello that fits comes first. Then records: even kinds are messages, odd ones push honest KV for
// the newest lease, so that there is something that runs.

#include <grpcpp/grpcpp.h>

#include <map>
#include <set>

#include "common/cluster/compat.h"
#include "tests/decode_worker/service_harness.h"
#include "tests/fuzz/quiet_logs.h"
#include "tests/fuzz/records.h"

namespace cachalot::fuzz {
namespace {

constexpr uint8_t kGreets = 1;
constexpr uint8_t kMessage = 0, kPush = 1;
constexpr size_t kMostRecords = 16;
constexpr size_t kMostPrompt = 64, kMostPushes = 3;  // the tiny model is not that fast
constexpr uint64_t kMark = 0x6d61726b00000000;       // handles of our own requests, all refused
constexpr int kLookForLeaks = 16;                    // inputs whose Session broke

/// One Session, followed in lockstep: what the worker may say is known.
class Follower {
 public:
  Follower(v1::Decode::Stub* stub, int vocab) : vocab_(vocab) {
    context_.set_deadline(std::chrono::system_clock::now() + testing::kPatience);
    stream_ = stub->Session(&context_);
  }

  void Greet(const v1::Compat& compat) {
    v1::SessionRequest hello;
    *hello.mutable_hello()->mutable_compat() = compat;
    hello.mutable_hello()->set_takes_preemption(true);
    CHECK(stream_->Write(hello));
    v1::SessionResponse response;
    CHECK(stream_->Read(&response) && response.has_hello());
    greeted_ = true;
  }

  /// False: the Session has ended.
  bool Say(const v1::SessionRequest& request) {
    if (request.has_open()) {
      asked_.insert(request.open().handle());
      // A handle that has a lease ends the Session: what runs goes on until then.
      if (!leased_.contains(request.open().handle()))
        states_[request.open().handle()] = request.open().state();
    }
    if (!stream_->Write(request)) return false;
    if (!greeted_) return true;
    if (!Mark()) return false;
    CHECK_MSG(asked_.empty(), "an Open without an answer");
    if (request.has_close()) Forget(request.close().handle());
    return true;
  }

  struct Granted {
    uint64_t handle = 0;
    v1::Lease lease;
    v1::SequenceState state;
  };
  const std::optional<Granted>& newest() const { return newest_; }
  /// Its KV is there.
  void Runs(const Granted& granted) {
    next_[granted.handle] = granted.state.emitted_size() + 1;
    newest_.reset();
  }

  Status End() {
    for (uint64_t handle : std::set<uint64_t>(leased_)) {
      v1::SessionRequest close;
      close.mutable_close()->set_handle(handle);
      if (!stream_->Write(close)) break;
    }
    stream_->WritesDone();
    v1::SessionResponse response;
    while (stream_->Read(&response)) Check(response);
    return rpc::FromGrpc(stream_->Finish(), /*given_by_handler=*/true);
  }

 private:
  /// Reads to the answer to a request that can only be refused.
  bool Mark() {
    v1::SessionRequest request;
    const uint64_t mark = kMark + ++marks_;
    request.mutable_open()->set_handle(mark);
    asked_.insert(mark);
    if (!stream_->Write(request)) return false;
    v1::SessionResponse response;
    while (stream_->Read(&response)) {
      Check(response);
      if (!response.has_failed() || response.failed().handle() != mark) continue;
      CHECK(response.failed().code() == static_cast<int>(StatusCode::kInvalidArgument));
      return true;
    }
    return false;
  }

  void Check(const v1::SessionResponse& response) {
    if (response.has_hello()) {
      CHECK(!greeted_);
      greeted_ = true;
    }
    if (response.has_granted()) {
      const uint64_t handle = response.granted().handle();
      CHECK_MSG(asked_.erase(handle) == 1, "granted what nobody asked for");
      CHECK(leased_.insert(handle).second);
      newest_ = {handle, response.granted().lease(), states_[handle]};
    }
    if (response.has_failed()) {
      const int code = response.failed().code();
      CHECK(code > 0 && code <= 16 && !response.failed().message().empty());
      CHECK_MSG(asked_.erase(response.failed().handle()) == 1 || next_.contains(response.failed().handle()),
                "failed what does not run");
      if (!asked_.contains(response.failed().handle())) Forget(response.failed().handle());
    }
    if (response.has_preempted()) {
      const auto runs = next_.find(response.preempted().handle());
      CHECK(runs != next_.end() && runs->second == response.preempted().next_index());
      Forget(response.preempted().handle());
    }
    CheckStep(response.step());
  }

  void CheckStep(const v1::StepBatch& step) {
    const int count = step.handles_size();
    CHECK(step.indices_size() == count && step.tokens_size() == count && step.finish_size() == count);
    CHECK(step.logits_size() == 0 && (step.logprobs_size() == 0 || step.logprobs_size() == count));
    for (int i = 0; i < count; ++i) {
      const auto runs = next_.find(step.handles(i));
      CHECK_MSG(runs != next_.end(), "a token of what does not run");
      CHECK_MSG(runs->second++ == step.indices(i), "a token is missing or comes twice");
      CHECK(step.tokens(i) >= 0 && step.tokens(i) < vocab_);
      CHECK(step.indices(i) < states_[step.handles(i)].params().max_tokens());
      if (step.finish(i) != v1::STEP_FINISH_NONE) Forget(step.handles(i));
    }
  }

  void Forget(uint64_t handle) {
    leased_.erase(handle);
    next_.erase(handle);
    if (newest_ && newest_->handle == handle) newest_.reset();
  }

  const int vocab_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> stream_;
  bool greeted_ = false;
  uint64_t marks_ = 0;
  std::set<uint64_t> asked_, leased_;             // Opens without an answer; granted and not over
  std::map<uint64_t, v1::SequenceState> states_;  // as they were opened
  std::map<uint64_t, int64_t> next_;              // of those that run: the next output index
  std::optional<Granted> newest_;
};

/// A decode worker for the whole process.
class Worker final : public testing::ServiceTest {
 public:
  Worker() {
    GTEST_FLAG_SET(break_on_failure, true);
    ServiceTest::SetUp();
    Start();
    stub_ = v1::Decode::NewStub(channel_);
  }
  ~Worker() override {
    stub_.reset();
    ServiceTest::TearDown();
  }
  void TestBody() override {}

  void RunSession(bool greets, const std::vector<Record>& records) {
    Follower router(stub_.get(), engine_.weights()->config.vocab_size);
    if (greets) router.Greet(server_->compat());
    size_t pushes = 0;
    for (const Record& record : records) {
      if (record.kind % 2 == kPush) {
        if (router.newest() && pushes++ < kMostPushes) PushFor(router);
        continue;
      }
      v1::SessionRequest request;
      if (!request.ParseFromArray(record.bytes.data(), static_cast<int>(record.bytes.size()))) continue;
      if (!router.Say(request)) break;
    }
    const Status end = router.End();
    CHECK_MSG(end.ok() || end.code() == StatusCode::kInvalidArgument ||
                  end.code() == StatusCode::kFailedPrecondition,
              StatusMessage(end));
    // Leases of a broken Session live on for the grace.
    if (!end.ok() && ++broken_ % kLookForLeaks != 0) return;
    if (!end.ok() || broken_ > 0) clock_.Advance(options_.leases.session_grace + std::chrono::seconds(1));
    broken_ = 0;
    CHECK_MSG(AllFree(), "KV is held by nobody");
  }

 private:
  void PushFor(Follower& router) {
    const Follower::Granted granted = *router.newest();
    const auto state = FromProto(granted.state, engine_.weights()->config.vocab_size);
    CHECK_MSG(state.ok(), "granted what cannot be: " + StatusMessage(state.status()));
    if (state->prompt.size() + state->emitted.size() > kMostPrompt || state->MaxTokens() > 4096) return;
    const HandOff hand_off = Prefill(*state, granted.lease);
    if (Push(hand_off).ok()) router.Runs(granted);
  }

  std::unique_ptr<v1::Decode::Stub> stub_;
  int broken_ = 0;  // since we looked
};

v1::SessionRequest Open(uint64_t handle, int prompt, int max_tokens) {
  v1::SessionRequest request;
  request.mutable_open()->set_handle(handle);
  SequenceState state;
  state.request_id = "r" + std::to_string(handle);
  for (int i = 0; i < prompt; ++i) state.prompt.push_back(3 + i % 40);
  state.params.max_tokens = max_tokens;
  state.params.ignore_eos = true;
  state.params.sampling.seed = handle;
  *request.mutable_open()->mutable_state() = ToProto(state);
  return request;
}

v1::SessionRequest Acknowledge(std::vector<uint64_t> handles, std::vector<int64_t> next_indices) {
  v1::SessionRequest request;
  request.mutable_acknowledge()->mutable_handles()->Assign(handles.begin(), handles.end());
  request.mutable_acknowledge()->mutable_next_index()->Assign(next_indices.begin(), next_indices.end());
  return request;
}

v1::SessionRequest Close(uint64_t handle) {
  v1::SessionRequest request;
  request.mutable_close()->set_handle(handle);
  return request;
}

}  // namespace

std::vector<Seed> Seeds() {
  v1::SessionRequest hello, beat, outside = Open(5, 4, 5), debug = Open(6, 4, 5), biased = Open(7, 9, 30);
  hello.mutable_hello()->mutable_compat()->set_weights("others");
  beat.mutable_heartbeat();
  outside.mutable_open()->mutable_state()->set_prompt(1, -3);
  debug.mutable_open()->mutable_state()->set_want_logits(true);
  v1::SequenceParams& params = *biased.mutable_open()->mutable_state()->mutable_params();
  params.add_logit_bias_ids(3);
  params.add_logit_bias_values(-4);
  params.set_logprobs(3);
  params.set_presence_penalty(1);

  struct Push {};
  std::vector<Seed> seeds;
  const auto seed = [&](const char* name, uint8_t greets, const auto&... messages) {
    std::string input(1, static_cast<char>(greets));
    const auto add = [&](const auto& message) {
      if constexpr (std::is_same_v<std::decay_t<decltype(message)>, Push>) {
        input += std::string({static_cast<char>(kPush), 0, 0});
      } else {
        AddRecord(&input, kMessage, message);
      }
    };
    (add(messages), ...);
    seeds.push_back({name, input});
  };
  const int64_t most = std::numeric_limits<int64_t>::max();
  seed("runs", kGreets, Open(1, 5, 12), Push(), Acknowledge({1}, {4}), beat, Acknowledge({1}, {12}));
  seed("two", kGreets, Open(1, 5, 40), Push(), Open(2, 9, 60), Push(), Acknowledge({1, 2, 9}, {40, 60, 1}),
       Close(1));
  seed("closed", kGreets, Open(1, 5, 2000), Push(), Close(1), Close(1), Close(7), Open(1, 3, 4), Push());
  seed("mismatched", kGreets, Open(1, 5, 400), Push(), Acknowledge({1}, {4, 5}));
  seed("far", kGreets, Open(1, 5, 400), Push(), Acknowledge({1, 1}, {most, -most}), Acknowledge({1}, {-1}),
       beat);
  seed("twice", kGreets, Open(1, 5, 40), Open(1, 6, 40));
  seed("refused", kGreets, outside, debug, Open(8, 4, 1 << 30), Open(9, 4, 20));
  seed("biased", kGreets, biased, Push(), Acknowledge({7}, {30}));
  seed("hello_twice", kGreets, hello);
  seed("no_hello", 0, Open(1, 5, 12), beat);
  seed("other_weights", 0, hello, Open(1, 5, 12));
  return seeds;
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cachalot;
  fuzz::QuietLogs();
  if (size == 0) return 0;
  static fuzz::Worker worker;
  worker.RunSession(data[0] & fuzz::kGreets,
                    fuzz::ReadRecords(fuzz::Text(data + 1, size - 1), fuzz::kMostRecords));
  return 0;
}

#pragma once
// A decode server over real gRPC, with the test as its routers and its prefill workers.

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/rpc/block_on.h"
#include "common/rpc/client_stream.h"
#include "common/rpc/slices.h"
#include "decode_worker/decode_server.h"
#include "tests/decode_worker/tiny_engine.h"
#include "tests/support/patience.h"

namespace cachalot::testing {

/// Waits for another thread's progress; false after kPatience.
bool Eventually(const std::function<bool()>& condition);

/// Stands still until Advance, on any thread.
class SharedClock final : public Clock {
 public:
  TimePoint Now() const override { return TimePoint(Duration(now_.load())); }
  void Advance(Duration by) { now_ += by.count(); }

 private:
  std::atomic<int64_t> now_{0};
};

/// One Session. Every wait ends with kPatience.
class TestRouter {
 public:
  explicit TestRouter(const std::string& address);
  ~TestRouter();

  /// False when the stream is dead.
  bool Send(const v1::SessionRequest& request) { return stream_->Write(request); }
  bool Hello(const v1::Compat& compat, bool takes_preemption = true);
  bool Open(uint64_t handle, const SequenceState& state);
  bool Acknowledge(uint64_t handle, int64_t next_index);
  bool Close(uint64_t handle);
  bool Heartbeat();

  /// The next message that is no heartbeat; one without content at the end of the stream.
  v1::SessionResponse Next();
  v1::SessionResponse NextOfAnyKind();
  /// Hello and its reply.
  v1::HelloReply Greet(const v1::Compat& compat, bool takes_preemption = true);
  /// Open and its grant; nothing else may come between.
  v1::Lease Lease(uint64_t handle, const SequenceState& state);
  /// Open and its refusal.
  Status Refusal(uint64_t handle, const SequenceState& state);
  /// Reads StepBatches until `count` tokens of `handle` are in tokens; acknowledges if told to. False when
  /// the stream or the request ends before, or the request is preempted.
  bool ReadTokens(uint64_t handle, size_t count, bool acknowledge = true);

  /// Gives up, as a dying router does.
  void Cancel() { context_.TryCancel(); }
  /// Reads to the end and gives the server's status.
  Status Finish();

  std::map<uint64_t, std::vector<int32_t>> tokens;  // by handle, from the decode worker only
  std::map<uint64_t, v1::StepFinish> finish;
  std::map<uint64_t, Status> failed;
  std::map<uint64_t, int64_t> preempted;  // the next index
  std::map<uint64_t, std::vector<std::string>> logits;
  int largest_step = 0;  // tokens in one message

 private:
  void Take(const v1::SessionResponse& response, bool acknowledge);

  grpc::ClientContext context_;
  std::unique_ptr<v1::Decode::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> stream_;
  bool finished_ = false;
};

/// One Push stream. Every wait ends with kPatience.
class TestPush {
 public:
  /// `lease`: named in the call's metadata; 0: not.
  TestPush(rpc::Loop* loop, const std::shared_ptr<grpc::Channel>& channel, uint64_t lease = 0);
  ~TestPush();

  bool Write(const std::vector<std::byte>& frame);
  /// The next verdict; INTERNAL when the stream ends without.
  Status Verdict();
  /// Half-closes and gives the call's status.
  Status Finish();

 private:
  rpc::Loop* loop_;
  std::unique_ptr<rpc::RawClientStream> stream_;
};

class ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    client_loop_.Start();
    options_.kv_tokens = 16384;
    options_.max_sequences = 16;
  }
  void TearDown() override;
  /// With the experts in process unless others are given.
  void Start(StepLoop::MakeExperts make_experts = {});

  /// The frames of a prefill of `state`: rows, then the commit.
  struct HandOff {
    int32_t first_token = 0;
    std::vector<std::vector<std::byte>> rows;
    std::vector<std::byte> commit;
  };
  HandOff Prefill(const SequenceState& state, const v1::Lease& lease, uint32_t attempt = 1);
  std::unique_ptr<TestPush> NewPush(uint64_t lease = 0) {
    return std::make_unique<TestPush>(&client_loop_, channel_, lease);
  }
  /// All of it on one stream; its verdict.
  Status Push(const HandOff& hand_off);
  /// Opens, prefills and pushes; tokens[handle] begins with the first one.
  void Run(TestRouter& router, uint64_t handle, const SequenceState& state);

  /// Four outputs of one sequence, handles 1 to 4, with all their logits: more than gRPC buffers. They are over, and
  /// wait for the router to read. Needs debug_logits.
  SequenceState QueueUnread(TestRouter& router);

  double Metric(const std::string& name) {
    return registry_.AddCounter("cachalot_decode_" + name, "").Value();
  }
  std::unique_ptr<TestRouter> NewRouter() { return std::make_unique<TestRouter>(address_); }
  /// A router that has said Hello.
  std::unique_ptr<TestRouter> GreetedRouter(bool takes_preemption = true);
  bool AllFree() {
    return Eventually([this] { return server_->pools().used_blocks() == 0; });
  }
  v1::Description Describe();
  /// What the health service says of `service`.
  bool Healthy(const std::string& service);

  TinyEngine engine_;
  SharedClock clock_;
  MetricsRegistry registry_;
  DecodeServerOptions options_;
  std::unique_ptr<DecodeServer> server_;
  std::string address_;
  rpc::Loop client_loop_{{.name = "client"}};
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace cachalot::testing

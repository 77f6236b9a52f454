#include "router/decode_client.h"

#include <gmock/gmock.h>

#include "common/cluster/compat.h"
#include "tests/router/worker_servers.h"
#include "tests/support/own_address.h"

namespace cachalot::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Kind = FlowEvent::Kind;
using Message = v1::SessionRequest;

constexpr uint64_t kRouterEpoch = 42;

class DecodeClientTest : public ClientTest {
 protected:
  DecodeClientTest() {
    options_.heartbeat_interval = std::chrono::milliseconds(10);
    options_.silence_limit = kPatience;
    options_.reconnect_delay = std::chrono::milliseconds(5);
  }
  ~DecodeClientTest() override {
    StopLoop();
    calls_.clear();
  }

  void Connect() { Connect(server_->address()); }
  void Connect(const std::string& address) {
    client_ = std::make_unique<DecodeClient>(&loop_, address, kRouterEpoch, &cluster_, options_);
    ASSERT_TRUE(loop_.Spawn(client_->Run(), "decode client"));
  }
  void ConnectWell() {
    Connect();
    ASSERT_TRUE(EventuallyHealthy(*client_));
  }
  /// A request; its handle at the server.
  uint64_t Open(const std::shared_ptr<FlowQueue>& queue) {
    const size_t before = server_->Received(Message::kOpen).size();
    calls_.push_back(OnLoop([&] { return client_->Open(TestState(), queue); }));
    const auto opens = server_->Await(Message::kOpen, before + 1);
    return opens.back().open().handle();
  }
  void CloseCall(size_t i) {
    OnLoop([&] {
      calls_[i].reset();
      return 0;
    });
  }

  ClusterView cluster_;
  DecodeClientOptions options_;
  std::unique_ptr<DecodeServer> server_ = std::make_unique<DecodeServer>();
  std::unique_ptr<DecodeClient> client_;
  std::vector<std::unique_ptr<DecodeCall>> calls_;  // loop thread
};

TEST_F(DecodeClientTest, SaysHelloAndBeats) {
  server_->Script([this] { server_->description.mutable_load()->set_free_kv_tokens(4321); });
  EXPECT_EQ(StatusMessage((Connect(), Health(*client_))), "not connected yet");
  ASSERT_TRUE(EventuallyHealthy(*client_));
  const auto hello = server_->Await(Message::kHello, 1)[0].hello();
  EXPECT_EQ(hello.router_epoch(), kRouterEpoch);
  EXPECT_TRUE(CheckCompat(hello.compat(), TestCompat(), "").ok());
  EXPECT_EQ(OnLoop([&] { return client_->load().free_kv_tokens; }), 4321);
  server_->Await(Message::kHeartbeat, 3);
  EXPECT_TRUE(server_->Look(server_->received)[0].has_hello());
}

TEST_F(DecodeClientTest, KnowsWhatALeaseBeginsWith) {
  ConnectWell();
  const auto ahead = [this] { return OnLoop([this] { return client_->load().reserve_ahead; }); };
  EXPECT_EQ(ahead(), std::numeric_limits<int64_t>::max()) << "an older worker";
}

TEST_F(DecodeClientTest, KnowsItThroughAllLoadsThatFollow) {
  server_->Script([this] { server_->reserve_ahead = 64; });
  ConnectWell();
  const auto queue = NewQueue();
  const uint64_t handle = Open(queue);
  server_->SendTokens({handle}, 3, 50);  // with a load
  EXPECT_EQ(Next(queue).kind, Kind::kToken);
  EXPECT_EQ(OnLoop([this] { return client_->load().free_kv_tokens; }), 1234);
  EXPECT_EQ(OnLoop([this] { return client_->load().reserve_ahead; }), 64);
}

TEST_F(DecodeClientTest, FiguresOutOfAllBoundsAreHeldInThem) {
  server_->Script([this] {
    server_->description.mutable_load()->set_running_sequences(std::numeric_limits<int64_t>::max());
    server_->description.mutable_load()->set_waiting_tokens(1);
    server_->description.mutable_load()->set_free_kv_tokens(std::numeric_limits<int64_t>::min());
  });
  ConnectWell();
  const WorkerLoad load = OnLoop([this] { return client_->load(); });
  EXPECT_EQ(load.running, int64_t{1} << 40);
  EXPECT_EQ(load.waiting_tokens, 1);
  EXPECT_EQ(load.free_kv_tokens, 0);
}

TEST_F(DecodeClientTest, BeatsAsOftenAsTheWorkerAsks) {
  options_.heartbeat_interval = std::chrono::hours(1);
  server_->Script([this] { server_->asks_for_heartbeats_ms = 1; });
  Connect();
  // The beat that was due in an hour is due now.
  server_->Await(Message::kHeartbeat, 3);
}

TEST_F(DecodeClientTest, CarriesARequest) {
  ConnectWell();
  const auto queue = NewQueue();
  const uint64_t handle = Open(queue);
  const auto open = server_->Received(Message::kOpen)[0].open();
  EXPECT_EQ(open.state().SerializeAsString(), ToProto(TestState()).SerializeAsString());
  server_->SendGranted(handle, 5);
  EXPECT_EQ(Next(queue).kind, Kind::kGranted);
  auto& lease = dynamic_cast<RemoteLease&>(*calls_[0]);
  EXPECT_EQ(OnLoop([&] { return lease.lease().id(); }), 5u);
  EXPECT_EQ(OnLoop([&] { return lease.lease().epoch(); }), 99u);
  EXPECT_EQ(lease.address(), server_->address());

  v1::SessionResponse response;
  v1::StepBatch& batch = *response.mutable_step();
  batch.add_handles(handle);
  batch.add_indices(3);
  batch.add_tokens(8);
  batch.add_finish(v1::STEP_FINISH_LENGTH);
  const float logits[] = {1.5f, -2.f};
  batch.add_logits(logits, sizeof(logits));
  server_->Send(response);
  const FlowEvent event = Next(queue);
  EXPECT_EQ(event.kind, Kind::kToken);
  EXPECT_EQ(event.index, 3);
  EXPECT_EQ(event.token, 8);
  EXPECT_EQ(event.finish, FinishReason::kLength);
  EXPECT_THAT(event.logits, ElementsAre(1.5f, -2.f));

  CloseCall(0);
  EXPECT_EQ(server_->Await(Message::kClose, 1)[0].close().handle(), handle);
}

TEST_F(DecodeClientTest, ARequestTooLargeToSendFailsAlone) {
  ConnectWell();
  const auto queue = NewQueue(), large = NewQueue();
  const uint64_t handle = Open(queue);
  calls_.push_back(OnLoop([&] {
    SequenceState state = TestState();
    state.request_id.assign(16 << 20, 'r');
    return client_->Open(state, large);
  }));
  const FlowEvent refused = Next(large);
  EXPECT_EQ(refused.kind, Kind::kDecodeFailed);
  EXPECT_EQ(refused.error.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(StatusMessage(refused.error), HasSubstr("a worker takes at most 16777216"));
  server_->SendTokens({handle}, 3, 50);
  EXPECT_EQ(Next(queue).kind, Kind::kToken) << "the Session lives";
  EXPECT_EQ(server_->Received(Message::kHello).size(), 1u);
}

TEST_F(DecodeClientTest, DispatchesABatchToItsRequests) {
  ConnectWell();
  const auto first = NewQueue(), second = NewQueue();
  const uint64_t a = Open(first), b = Open(second);
  EXPECT_NE(a, b);
  server_->SendTokens({b, 777, a}, 3, 50);  // 777 is nobody's
  EXPECT_EQ(Next(second).token, 50);
  EXPECT_EQ(Next(first).token, 52);
  EXPECT_EQ(OnLoop([&] { return client_->load().free_kv_tokens; }), 1234);
  EXPECT_EQ(OnLoop([&] { return client_->load().running; }), 3);
  // A closed request hears nothing; the others do.
  CloseCall(0);
  server_->SendTokens({a, b}, 4, 60);
  EXPECT_EQ(Next(second).token, 61);
  EXPECT_TRUE(Empty(first));
}

TEST_F(DecodeClientTest, AcknowledgesInStrides) {
  ConnectWell();
  const uint64_t handle = Open(NewQueue());
  OnLoop([&] {
    for (int64_t i = 1; i <= 40; ++i) calls_[0]->Acknowledge(i);
    return 0;
  });
  CloseCall(0);
  server_->Await(Message::kClose, 1);
  std::vector<int64_t> acknowledged;
  for (const auto& request : server_->Received(Message::kAcknowledge)) {
    EXPECT_THAT(request.acknowledge().handles(), ElementsAre(handle));
    acknowledged.push_back(request.acknowledge().next_index(0));
  }
  EXPECT_THAT(acknowledged, ElementsAre(16, 32));
}

TEST_F(DecodeClientTest, PassesOnAFailure) {
  ConnectWell();
  const auto queue = NewQueue();
  const uint64_t handle = Open(queue);
  server_->SendFailed(handle, static_cast<int>(StatusCode::kResourceExhausted), "no KV");
  const FlowEvent event = Next(queue);
  EXPECT_EQ(event.kind, Kind::kDecodeFailed);
  EXPECT_EQ(event.error, ResourceExhausted("no KV"));
  // It is over for the worker: nothing more is said of it, and nothing more heard.
  server_->SendTokens({handle}, 3, 1);
  server_->SendFailed(handle, 13, "again");
  OnLoop([&] {
    calls_[0]->Acknowledge(100);
    return 0;
  });
  CloseCall(0);
  const auto other = NewQueue();
  const uint64_t next = Open(other);
  server_->SendTokens({next}, 3, 1);
  EXPECT_EQ(Next(other).kind, Kind::kToken);
  EXPECT_TRUE(Empty(queue));
  EXPECT_TRUE(server_->Received(Message::kClose).empty());
  EXPECT_TRUE(server_->Received(Message::kAcknowledge).empty());
}

TEST_F(DecodeClientTest, PassesOnAPreemptionBehindItsTokens) {
  ConnectWell();
  EXPECT_TRUE(server_->Await(Message::kHello, 1)[0].hello().takes_preemption());
  const auto queue = NewQueue();
  const uint64_t handle = Open(queue);
  server_->SendTokens({handle}, 3, 50);
  v1::SessionResponse response;
  response.mutable_preempted()->set_handle(handle);
  response.mutable_preempted()->set_next_index(4);
  server_->Send(response);
  server_->Send(response);  // it is nobody's now
  EXPECT_EQ(Next(queue).kind, Kind::kToken);
  const FlowEvent event = Next(queue);
  EXPECT_EQ(event.kind, Kind::kPreempted);
  EXPECT_EQ(event.index, 4);
  CloseCall(0);  // the worker has forgotten it
  const auto other = NewQueue();
  server_->SendTokens({Open(other)}, 3, 1);
  EXPECT_EQ(Next(other).kind, Kind::kToken);
  EXPECT_TRUE(Empty(queue));
  EXPECT_TRUE(server_->Received(Message::kClose).empty());
}

TEST_F(DecodeClientTest, HeartbeatsAndGrantsRenewTheLoad) {
  ConnectWell();
  const auto free = [&] { return OnLoop([&] { return client_->load().free_kv_tokens; }); };
  v1::SessionResponse beat;
  beat.mutable_heartbeat()->mutable_load()->set_free_kv_tokens(77);
  beat.mutable_heartbeat()->mutable_load()->set_leases(3);
  server_->Send(beat);
  EXPECT_TRUE(Eventually([&] { return free() == 77; }));
  EXPECT_EQ(OnLoop([&] { return client_->load().leases; }), 3);
  const auto queue = NewQueue();
  v1::SessionResponse granted;
  granted.mutable_granted()->set_handle(Open(queue));
  granted.mutable_granted()->mutable_load()->set_free_kv_tokens(66);
  server_->Send(granted);
  EXPECT_EQ(Next(queue).kind, Kind::kGranted);
  EXPECT_EQ(free(), 66);
  // An older worker's have none: they change nothing.
  server_->SendGranted(Open(queue), 5);
  EXPECT_EQ(Next(queue).kind, Kind::kGranted);
  EXPECT_EQ(free(), 66);
}

TEST_F(DecodeClientTest, AMalformedBatchBreaksTheSession) {
  const std::function<void(v1::StepBatch&)> cases[] = {
      [](auto& b) { b.add_handles(1); },
      [](auto& b) { b.add_tokens(1); },
      [](auto& b) { b.add_indices(1); },
      [](auto& b) { b.add_finish(v1::STEP_FINISH_STOP); },
      [](auto& b) { b.add_logits("1234"), b.add_logits("1234"); },
  };
  ConnectWell();
  int sessions = 1;
  for (const auto& spoil : cases) {
    ASSERT_TRUE(
        Eventually([&] { return server_->Look(server_->sessions) == sessions && Health(*client_).ok(); }));
    const auto queue = NewQueue();
    const uint64_t handle = Open(queue);
    v1::SessionResponse response;
    v1::StepBatch& batch = *response.mutable_step();
    batch.add_handles(handle);
    batch.add_indices(3);
    batch.add_tokens(8);
    batch.add_finish(v1::STEP_FINISH_NONE);
    spoil(batch);
    server_->Send(response);
    server_->SendTokens({handle}, 4, 1);  // nothing behind it is believed
    const FlowEvent event = Next(queue);
    EXPECT_EQ(event.kind, Kind::kDecodeFailed);
    EXPECT_EQ(event.error.code(), StatusCode::kUnavailable);
    EXPECT_THAT(StatusMessage(event.error), HasSubstr("malformed step batch"));
    EXPECT_TRUE(Empty(queue));
    ++sessions;
  }
  EXPECT_TRUE(EventuallyHealthy(*client_));
}

TEST_F(DecodeClientTest, SilenceBreaksTheSession) {
  options_.silence_limit = std::chrono::milliseconds(500);
  ConnectWell();
  const auto first = NewQueue(), second = NewQueue();
  Open(first);
  const uint64_t handle = Open(second);
  server_->Script([this] { server_->beats = false; });
  for (const auto& queue : {first, second}) {
    const FlowEvent event = Next(queue);
    EXPECT_EQ(event.kind, Kind::kDecodeFailed);
    EXPECT_EQ(event.error.code(), StatusCode::kUnavailable);
    EXPECT_THAT(StatusMessage(event.error),
                HasSubstr("decode worker " + server_->address() + ": no sign of life"));
  }
  // Another Session follows; the old requests mean nothing in it, and their handles are not used again.
  server_->Script([this] { server_->beats = true; });
  ASSERT_TRUE(Eventually([&] { return server_->Look(server_->sessions) >= 2; }));
  CloseCall(0);
  CloseCall(1);
  ASSERT_TRUE(EventuallyHealthy(*client_));
  EXPECT_GT(Open(NewQueue()), handle);
  EXPECT_TRUE(server_->Received(Message::kClose).empty());
  EXPECT_TRUE(Eventually([&] { return server_->Look(server_->open_sessions) == 1; }));
}

TEST_F(DecodeClientTest, ASilentConnectionIsLeftBehind) {
  server_->Script([this] { server_->describe_hangs = true; });
  options_.connect_timeout = std::chrono::milliseconds(100);
  Connect();
  ASSERT_TRUE(Eventually([&] { return server_->Look(server_->describers).size() >= 2; }));
  const auto describers = server_->Look(server_->describers);
  EXPECT_NE(describers[0], describers[1]);
  server_->Script([this] { server_->describe_hangs = false; });
  EXPECT_TRUE(EventuallyHealthy(*client_));
}

TEST_F(DecodeClientTest, AWorkerThatReadsNothingLosesItsSessionAndItsRequests) {
  options_.queue_limit = 4;
  server_->Script([this] { server_->deaf_sessions = 1; });
  ConnectWell();
  const auto queue = NewQueue(), again = NewQueue();
  SequenceState large = TestState();
  large.prompt.assign(4 << 20, 100'000);  // 12 MiB, more than gRPC takes without a reader: beats queue up behind it
  calls_.push_back(OnLoop([&] { return client_->Open(large, queue); }));
  const FlowEvent event = Next(queue);
  ASSERT_EQ(event.kind, Kind::kDecodeFailed);
  EXPECT_EQ(event.error.code(), StatusCode::kUnavailable)
      << "only this makes a request go on at another worker";
  EXPECT_THAT(StatusMessage(event.error), HasSubstr("it reads too slowly: 4 messages wait for it"));
  ASSERT_TRUE(EventuallyHealthy(*client_)) << "the next Session is read";
  server_->SendGranted(Open(again), 6);
  EXPECT_EQ(Next(again).kind, Kind::kGranted);
}

TEST_F(DecodeClientTest, AnEndedSessionFailsTheCallsWithItsReason) {
  ConnectWell();
  const auto queue = NewQueue();
  Open(queue);
  server_->End(Aborted("drained"));
  const FlowEvent event = Next(queue);
  EXPECT_EQ(event.kind, Kind::kDecodeFailed);
  EXPECT_EQ(event.error.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(event.error), HasSubstr("drained"));
}

TEST_F(DecodeClientTest, ConnectsAgainAfterARestart) {
  server_ = std::make_unique<DecodeServer>(OwnAddress(1));
  ConnectWell();
  const auto queue = NewQueue();
  Open(queue);
  server_.reset();
  const FlowEvent event = Next(queue);
  EXPECT_EQ(event.kind, Kind::kDecodeFailed);
  EXPECT_EQ(event.error.code(), StatusCode::kUnavailable);
  ASSERT_TRUE(EventuallySick(*client_));
  server_ = std::make_unique<DecodeServer>(OwnAddress(1));
  ASSERT_TRUE(EventuallyHealthy(*client_));
  const auto again = NewQueue();
  const uint64_t handle = Open(again);
  server_->SendGranted(handle, 6);
  EXPECT_EQ(Next(again).kind, Kind::kGranted);
}

TEST_F(DecodeClientTest, OpenWhileSickFailsAtOnce) {
  server_->Stop();
  Connect();
  const auto queue = NewQueue();
  calls_.push_back(OnLoop([&] { return client_->Open(TestState(), queue); }));
  const FlowEvent event = Next(queue);
  EXPECT_EQ(event.kind, Kind::kDecodeFailed);
  EXPECT_EQ(event.error.code(), StatusCode::kUnavailable);
  CloseCall(0);
}

TEST_F(DecodeClientTest, AWorkerThatDoesNotFitIsSick) {
  const struct {
    std::function<void(v1::Description&)> spoil;
    const char* named;
  } cases[] = {
      {[](auto& d) { d.mutable_compat()->set_weights("xyz"); }, "weights is \"xyz\" there, \"abc\" here"},
      {[](auto& d) { d.mutable_compat()->set_kv_layout("other"); }, "kv_layout"},
      {[](auto& d) { d.mutable_compat()->set_numerics("cuda"); }, "numerics"},
      {[](auto& d) { d.set_role(v1::ROLE_PREFILL); }, "wanted a decode worker, it is a prefill worker"},
  };
  ASSERT_TRUE(cluster_.Admit(this, TestCompat(), "the first worker").ok());
  server_->Script([&] { cases[0].spoil(server_->description); });
  Connect();
  for (const auto& c : cases) {
    server_->Script([&] {
      server_->description.set_role(v1::ROLE_DECODE);
      *server_->description.mutable_compat() = TestCompat();
      c.spoil(server_->description);
    });
    EXPECT_TRUE(Eventually([&] {
      return StatusMessage(Health(*client_)).find(c.named) != std::string::npos;
    })) << c.named
        << ": " << StatusMessage(Health(*client_));
  }
  EXPECT_EQ(server_->Look(server_->sessions), 0);
}

TEST_F(DecodeClientTest, ASessionThatTheWorkerRefusesNamesItsReason) {
  server_->Script([this] { server_->refuses_hello = FailedPrecondition("not compatible: weights differ"); });
  Connect();
  EXPECT_TRUE(Eventually([&] {
    return StatusMessage(Health(*client_)).find("weights differ") != std::string::npos;
  })) << StatusMessage(Health(*client_));
}

TEST_F(DecodeClientTest, AWorkerThatTakesNoNewWorkIsSickUntilItDoes) {
  server_->Script([this] { server_->description.mutable_load()->set_not_serving("starting"); });
  Connect();
  EXPECT_TRUE(Eventually([&] { return StatusMessage(Health(*client_)).find("starting") != std::string::npos; }));
  const auto queue = NewQueue();
  calls_.push_back(OnLoop([&] { return client_->Open(TestState(), queue); }));
  EXPECT_EQ(Next(queue).error.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(server_->Received(Message::kOpen).empty()) << "a request that would be refused was sent";
  v1::SessionResponse beat;
  beat.mutable_heartbeat()->mutable_load()->set_free_kv_tokens(77);
  server_->Send(beat);
  EXPECT_TRUE(EventuallyHealthy(*client_));
  const auto runs = NewQueue();
  const uint64_t handle = Open(runs);
  beat.mutable_heartbeat()->mutable_load()->set_not_serving("draining");
  server_->Send(beat);
  EXPECT_TRUE(EventuallySick(*client_));
  server_->SendTokens({handle}, 0, 9);
  EXPECT_EQ(Next(runs).token, 9) << "what runs goes on";
}

TEST_F(DecodeClientTest, NoHelloNoWork) {
  server_->Script([this] { server_->answers_hello = false; });
  Connect();
  server_->Await(Message::kHeartbeat, 2);
  EXPECT_FALSE(Health(*client_).ok());
}

TEST_F(DecodeClientTest, TheEndOfTheLoopClosesTheSession) {
  ConnectWell();
  Open(NewQueue());
  StopLoop();
  EXPECT_TRUE(Eventually([&] { return server_->Look(server_->open_sessions) == 0; }));
}

}  // namespace
}  // namespace cachalot::testing

#include "router/prefill_client.h"

#include <gmock/gmock.h>

#include "common/cluster/compat.h"
#include "router/decode_client.h"
#include "tests/router/worker_servers.h"
#include "tests/support/own_address.h"

namespace cachalot::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Kind = FlowEvent::Kind;

class SomeLease final : public RemoteLease {
 public:
  SomeLease() {
    lease_.set_id(11);
    lease_.set_epoch(12);
  }
  void Acknowledge(int64_t) override {}
  const v1::Lease& lease() const override { return lease_; }
  const std::string& address() const override { return address_; }

 private:
  v1::Lease lease_;
  const std::string address_ = "decode.host:99";
};

class PrefillClientTest : public ClientTest {
 protected:
  PrefillClientTest() { options_.describe_interval = std::chrono::milliseconds(20); }
  ~PrefillClientTest() override {
    StopLoop();
    call_.reset();
  }
  void Connect() {
    client_ = std::make_unique<PrefillClient>(&loop_, server_->address(), &cluster_, options_);
    ASSERT_TRUE(loop_.Spawn(client_->Run(), "prefill client"));
  }
  void ConnectWell() {
    Connect();
    ASSERT_TRUE(EventuallyHealthy(*client_));
  }
  /// Starts a prefill and waits until the server has it.
  void Start(PrefillOptions options = {}) {
    const size_t before = server_->Look(server_->requests).size();
    call_ = OnLoop([&] { return client_->Start(TestState(), lease_, options, queue_); });
    ASSERT_TRUE(Eventually([&] { return server_->Look(server_->requests).size() > before; }));
  }
  void Drop() {
    OnLoop([&] {
      call_.reset();
      return 0;
    });
  }
  bool EventuallyNoCall() {
    return Eventually([&] { return server_->Look(server_->open_calls) == 0; });
  }

  ClusterView cluster_;
  PrefillClientOptions options_;
  SomeLease lease_;
  std::unique_ptr<PrefillServer> server_ = std::make_unique<PrefillServer>();
  std::unique_ptr<PrefillClient> client_;
  std::shared_ptr<FlowQueue> queue_ = NewQueue();
  std::unique_ptr<PrefillCall> call_;  // loop thread
};

TEST_F(PrefillClientTest, KnowsItsWorker) {
  server_->Script([this] {
    server_->description.mutable_load()->set_running_sequences(2);
    server_->description.mutable_load()->set_waiting_tokens(300);
    server_->description.mutable_load()->set_free_kv_tokens(4000);
  });
  Connect();
  ASSERT_TRUE(EventuallyHealthy(*client_));
  const WorkerLoad load = OnLoop([&] { return client_->load(); });
  EXPECT_EQ(load.running, 2);
  EXPECT_EQ(load.waiting_tokens, 300);
  EXPECT_EQ(load.free_kv_tokens, 4000);
  server_->Script([this] { server_->description.mutable_load()->set_waiting_tokens(7); });
  EXPECT_TRUE(Eventually([&] { return OnLoop([&] { return client_->load().waiting_tokens; }) == 7; }));
}

TEST_F(PrefillClientTest, AFlowThatTakesNoRowsHoldsUpItsWorkerOnly) {
  options_.silence_limit = std::chrono::seconds(1);
  ConnectWell();
  Start();
  constexpr int kMessages = 50, kHeld = 16;
  for (int i = 0; i < kMessages; ++i) {
    v1::PrefillEvent logits;
    logits.mutable_logits()->set_first_row(i);
    logits.mutable_logits()->set_rows(1);
    logits.mutable_logits()->set_values(std::string(1 << 18, '\0'));
    server_->Send(logits);
  }
  server_->SendFirstToken(77);
  server_->SendCommitted();
  server_->End(OkStatus());
  const auto waiting = [&] { return OnLoop([&] { return queue_->size(); }); };
  ASSERT_TRUE(Eventually([&] { return waiting() == kHeld; }));
  // Longer than the limit, by looks that are 20 ms apart: a worker that is not read is not silent.
  const size_t looks = server_->Look(server_->describers).size();
  ASSERT_TRUE(Eventually([&] { return server_->Look(server_->describers).size() >= looks + 70; }));
  EXPECT_EQ(waiting(), size_t{kHeld});
  for (int i = 0; i < kMessages; ++i) {
    const FlowEvent rows = Next(queue_);
    ASSERT_EQ(rows.kind, Kind::kPromptLogits) << rows.error;
    EXPECT_EQ(rows.first_row, i);
    EXPECT_LE(waiting(), size_t{kHeld} + 2);  // and the end
  }
  EXPECT_EQ(Next(queue_).kind, Kind::kFirstToken);
  EXPECT_EQ(Next(queue_).kind, Kind::kCommitted);
  EXPECT_TRUE(EventuallyNoCall());
}

TEST_F(PrefillClientTest, RowsThatWaitForTheFlowAreBoundedInBytes) {
  ConnectWell();
  Start();
  EXPECT_FALSE(OnLoop([&] { return call_->waits_for_reader(); }));
  for (int i = 0; i < 10; ++i) {
    v1::PrefillEvent logits;
    logits.mutable_logits()->set_values(std::string((3 << 20) / 2, '\0'));
    server_->Send(logits);
  }
  ASSERT_TRUE(Eventually([&] { return OnLoop([&] { return call_->waits_for_reader(); }); }));
  EXPECT_EQ(OnLoop([&] { return queue_->size(); }), 3u) << "4 MiB and the rest of a message";
  EXPECT_EQ(Next(queue_).kind, Kind::kPromptLogits);
  EXPECT_TRUE(Eventually([&] { return OnLoop([&] { return queue_->size() == 3 && call_->waits_for_reader(); }); }));
  for (int i = 0; i < 9; ++i) EXPECT_EQ(Next(queue_).kind, Kind::kPromptLogits);
  EXPECT_FALSE(OnLoop([&] { return call_->waits_for_reader(); }));
}

TEST_F(PrefillClientTest, AFlowThatTakesNoRowsMayLeave) {
  ConnectWell();
  Start();
  for (int i = 0; i < 40; ++i) {
    v1::PrefillEvent logits;
    logits.mutable_logits()->set_values("12345678");
    server_->Send(logits);
  }
  ASSERT_TRUE(Eventually([&] { return OnLoop([&] { return queue_->size(); }) == 16; }));
  Drop();
  EXPECT_TRUE(EventuallyNoCall());
  EXPECT_TRUE(Eventually([&] { return OnLoop([&] { return queue_.use_count(); }) == 1; }))
      << "nobody keeps it";
}

TEST_F(PrefillClientTest, CarriesAPrefill) {
  ConnectWell();
  Start({.attempt = 3, .max_chunk_tokens = 64});
  const v1::PrefillRequest request = server_->Look(server_->requests)[0];
  EXPECT_EQ(request.state().SerializeAsString(), ToProto(TestState()).SerializeAsString());
  EXPECT_EQ(request.lease().id(), 11u);
  EXPECT_EQ(request.lease().epoch(), 12u);
  EXPECT_EQ(request.attempt(), 3u);
  EXPECT_EQ(request.decode_address(), "decode.host:99");
  EXPECT_EQ(request.max_chunk_tokens(), 64u);
  EXPECT_TRUE(CheckCompat(request.compat(), TestCompat(), "").ok());

  server_->SendProgress();
  v1::PrefillEvent logits;
  logits.mutable_logits()->set_first_row(1);
  logits.mutable_logits()->set_rows(1);
  const float values[] = {0.5f, 2.f};
  logits.mutable_logits()->set_values(values, sizeof(values));
  server_->Send(logits);
  server_->SendFirstToken(77);
  server_->SendCommitted();
  server_->End(OkStatus());

  const FlowEvent rows = Next(queue_);
  EXPECT_EQ(rows.kind, Kind::kPromptLogits);
  EXPECT_EQ(rows.attempt, 3u);
  EXPECT_EQ(rows.first_row, 1);
  EXPECT_THAT(rows.logits, ElementsAre(0.5f, 2.f));
  const FlowEvent token = Next(queue_);
  EXPECT_EQ(token.kind, Kind::kFirstToken);
  EXPECT_EQ(token.attempt, 3u);
  EXPECT_EQ(token.index, 2);  // behind the emitted ones
  EXPECT_EQ(token.token, 77);
  EXPECT_EQ(token.finish, FinishReason::kNone);
  const FlowEvent committed = Next(queue_);
  EXPECT_EQ(committed.kind, Kind::kCommitted);
  EXPECT_EQ(committed.attempt, 3u);
  EXPECT_TRUE(EventuallyNoCall());
  EXPECT_TRUE(Empty(queue_));
  EXPECT_TRUE(Health(*client_).ok());
}

TEST_F(PrefillClientTest, AFirstTokenThatIsTheLastNeedsNoCommit) {
  ConnectWell();
  Start();
  server_->SendFirstToken(77, v1::STEP_FINISH_STOP);
  server_->End(OkStatus());
  EXPECT_EQ(Next(queue_).finish, FinishReason::kStop);
  EXPECT_TRUE(EventuallyNoCall());
  Start();  // by now the first call has ended here too, or its end is ahead of the second's
  server_->End(Internal("second"));
  const FlowEvent event = Next(queue_);
  EXPECT_EQ(event.kind, Kind::kPrefillFailed);
  EXPECT_EQ(event.error.code(), StatusCode::kInternal);
}

TEST_F(PrefillClientTest, AnEndWithoutACommitIsAFailure) {
  ConnectWell();
  Start();
  server_->SendFirstToken(77);
  server_->End(OkStatus());
  EXPECT_EQ(Next(queue_).kind, Kind::kFirstToken);
  const FlowEvent event = Next(queue_);
  EXPECT_EQ(event.kind, Kind::kPrefillFailed);
  EXPECT_EQ(event.error.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(event.error), HasSubstr("without a commit"));
}

TEST_F(PrefillClientTest, ReportsTheWorkersError) {
  ConnectWell();
  Start({.attempt = 2});
  server_->End(ResourceExhausted("the queue is full"));
  const FlowEvent event = Next(queue_);
  EXPECT_EQ(event.kind, Kind::kPrefillFailed);
  EXPECT_EQ(event.attempt, 2u);
  EXPECT_EQ(event.error.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(StatusMessage(event.error), "prefill worker " + server_->address() + ": the queue is full");
  EXPECT_TRUE(Health(*client_).ok());
}

TEST_F(PrefillClientTest, SaysWhetherAnyWorkerHadTakenIt) {
  ConnectWell();
  Start();
  server_->End(Unavailable("starting"));
  EXPECT_TRUE(Next(queue_).untaken);
  ASSERT_TRUE(EventuallyNoCall() && EventuallyHealthy(*client_));
  Start();
  server_->SendProgress();
  server_->End(Unavailable("dies of it"));
  const FlowEvent event = Next(queue_);
  EXPECT_EQ(event.kind, Kind::kPrefillFailed);
  EXPECT_FALSE(event.untaken);
}

TEST_F(PrefillClientTest, TellsAnOutageOfExpertsFromOtherTrouble) {
  ConnectWell();
  for (const bool outage : {true, false}) {
    Start();
    if (outage) {
      v1::PrefillEvent away;
      away.mutable_experts_away();
      server_->Send(away);
    }
    server_->End(Unavailable("trouble"));
    const FlowEvent event = Next(queue_);
    EXPECT_EQ(event.kind, Kind::kPrefillFailed);
    EXPECT_EQ(event.error.code(), StatusCode::kUnavailable);
    EXPECT_EQ(event.experts_away, outage);
  }
}

TEST_F(PrefillClientTest, AWorkerThatOnlyPassesOnATroubleIsSoonHealthyAgain) {
  options_.describe_interval = std::chrono::hours(1);
  ConnectWell();
  Start();
  server_->End(Unavailable("the decode worker cannot be reached"));
  EXPECT_EQ(Next(queue_).error.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(EventuallyHealthy(*client_));
}

TEST_F(PrefillClientTest, AWorkerThatTakesNoNewWorkIsSickUntilItDoes) {
  server_->Script([this] { server_->description.mutable_load()->set_not_serving("starting: no experts yet"); });
  Connect();
  EXPECT_TRUE(Eventually([&] { return StatusMessage(Health(*client_)).find("no experts yet") != std::string::npos; }));
  server_->Script([this] { server_->description.mutable_load()->clear_not_serving(); });
  EXPECT_TRUE(EventuallyHealthy(*client_));
}

TEST_F(PrefillClientTest, ADeadWorkerIsSickUntilItIsBack) {
  server_ = std::make_unique<PrefillServer>(OwnAddress(1));
  ConnectWell();
  Start();
  server_.reset();
  const FlowEvent event = Next(queue_);
  EXPECT_EQ(event.kind, Kind::kPrefillFailed);
  EXPECT_EQ(event.error.code(), StatusCode::kUnavailable) << event.error;
  EXPECT_FALSE(Health(*client_).ok());
  server_ = std::make_unique<PrefillServer>(OwnAddress(1));
  EXPECT_TRUE(EventuallyHealthy(*client_));
  Start();
  server_->SendFirstToken(5);
  EXPECT_EQ(Next(queue_).token, 5);
}

TEST_F(PrefillClientTest, ASilentCallIsCancelledAndReported) {
  options_.silence_limit = std::chrono::milliseconds(400);
  ConnectWell();
  Start();
  const FlowEvent event = Next(queue_);
  EXPECT_EQ(event.kind, Kind::kPrefillFailed);
  EXPECT_EQ(event.error.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(event.error), HasSubstr("no sign of life"));
  EXPECT_FALSE(event.untaken) << "it may have died of it";
  ASSERT_TRUE(EventuallyNoCall());
  EXPECT_EQ(server_->Look(server_->cancelled), 1);
}

TEST_F(PrefillClientTest, ACommitWithoutAFirstTokenFailsThePrefill) {
  ConnectWell();
  Start();
  server_->SendCommitted();
  server_->End(OkStatus());
  EXPECT_EQ(Next(queue_).kind, Kind::kCommitted);
  const FlowEvent failed = Next(queue_);
  EXPECT_EQ(failed.kind, Kind::kPrefillFailed) << "its request would wait for the token for ever";
  EXPECT_THAT(StatusMessage(failed.error), HasSubstr("without a first token"));
}

TEST_F(PrefillClientTest, OneThatDrainsAnswers) {
  ConnectWell();
  server_->Script([this] { server_->description.mutable_load()->set_not_serving("draining: no new requests"); });
  EXPECT_TRUE(Eventually([&] { return !Health(*client_).ok(); }));
  EXPECT_TRUE(OnLoop([&] { return client_->connection(); }).ok());
}

TEST_F(PrefillClientTest, DroppingACallCancelsItAtTheServer) {
  ConnectWell();
  Start();
  server_->SendFirstToken(5);
  EXPECT_EQ(Next(queue_).token, 5);
  Drop();
  ASSERT_TRUE(EventuallyNoCall());
  EXPECT_EQ(server_->Look(server_->cancelled), 1);
  EXPECT_TRUE(Empty(queue_));
  EXPECT_TRUE(Health(*client_).ok());
}

TEST_F(PrefillClientTest, ACallDroppedBeforeItBeganIsNoTrouble) {
  ConnectWell();
  OnLoop([&] {
    client_->Start(TestState(), lease_, {}, queue_).reset();
    return 0;
  });
  Start();
  server_->SendFirstToken(5);
  EXPECT_EQ(Next(queue_).token, 5);
  EXPECT_TRUE(Health(*client_).ok());
}

TEST_F(PrefillClientTest, ASilentConnectionIsLeftBehind) {
  server_->Script([this] { server_->describe_hangs = true; });
  options_.describe_timeout = std::chrono::milliseconds(100);
  Connect();
  ASSERT_TRUE(Eventually([&] { return server_->Look(server_->describers).size() >= 2; }));
  const auto describers = server_->Look(server_->describers);
  EXPECT_NE(describers[0], describers[1]);
  server_->Script([this] { server_->describe_hangs = false; });
  EXPECT_TRUE(EventuallyHealthy(*client_));
}

TEST_F(PrefillClientTest, AWorkerThatDoesNotFitIsSick) {
  ConnectWell();
  ASSERT_TRUE(OnLoop([this] { return cluster_.Admit(this, TestCompat(), "another worker"); }).ok());
  server_->Script([this] { server_->description.mutable_compat()->set_mode("fast"); });
  EXPECT_TRUE(Eventually([&] {
    return StatusMessage(Health(*client_)).find("mode is \"fast\" there, \"exact\" here") !=
           std::string::npos;
  }));
  server_->Script([this] {
    server_->description.mutable_compat()->set_mode("exact");
    server_->description.set_role(v1::ROLE_DECODE);
  });
  EXPECT_TRUE(Eventually(
      [&] { return StatusMessage(Health(*client_)).find("wanted a prefill worker, it is a decode worker") != std::string::npos; }));
}

TEST_F(PrefillClientTest, TheEndOfTheLoopCancelsTheCall) {
  ConnectWell();
  Start();
  StopLoop();
  EXPECT_TRUE(EventuallyNoCall());
}

}  // namespace
}  // namespace cachalot::testing

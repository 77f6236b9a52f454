// Decode.Session over real gRPC: the test is router and prefill worker.

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <future>

#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/decode_worker/service_harness.h"

namespace cachalot {
namespace {

using std::chrono::seconds;
using testing::Eventually;
using ::testing::HasSubstr;

class SessionTest : public testing::ServiceTest {};

TEST_F(SessionTest, TokensEqualTheOraclesInABatchOfTwoRouters) {
  Start();
  const auto mine = engine_.OracleState(), other = engine_.OtherState(9, 40, 7);
  const auto one = GreetedRouter(), two = GreetedRouter();
  Run(*two, 1, other);  // handles belong to their Session
  Run(*one, 1, mine);
  EXPECT_TRUE(one->ReadTokens(1, mine.params.max_tokens));
  EXPECT_EQ(one->tokens[1], engine_.oracle().greedy_tokens);
  EXPECT_EQ(one->finish[1], v1::STEP_FINISH_LENGTH);
  EXPECT_TRUE(two->ReadTokens(1, 40));
  EXPECT_EQ(two->tokens[1], engine_.Generate(other));
  EXPECT_TRUE(AllFree());
  EXPECT_EQ(Metric("requests_total"), 2);
  EXPECT_EQ(Metric("tokens_total"), mine.params.max_tokens - 1 + 39);
  Run(*one, 1, mine);  // a finished request's handle is free again
  EXPECT_TRUE(one->ReadTokens(1, mine.params.max_tokens));
  EXPECT_EQ(one->tokens[1], engine_.oracle().greedy_tokens);
}

TEST_F(SessionTest, AStopTokenEndsASequence) {
  Start();
  auto state = engine_.OracleState();
  const auto& all = engine_.oracle().greedy_tokens;
  const size_t at = 5;
  state.params.stop_token_ids = {all[at]};
  const size_t first = std::find(all.begin(), all.end(), all[at]) - all.begin();
  ASSERT_GT(first, 0u);
  const auto router = GreetedRouter();
  Run(*router, 1, state);
  EXPECT_TRUE(router->ReadTokens(1, first + 1));
  EXPECT_EQ(router->finish[1], v1::STEP_FINISH_STOP);
  EXPECT_TRUE(AllFree());
}

TEST_F(SessionTest, AWindowHoldsASlowReaderAndAnAcknowledgeMovesIt) {
  options_.decode.window = 4;
  Start();
  const auto router = GreetedRouter(), other = GreetedRouter();
  Run(*router, 1, engine_.OracleState());
  EXPECT_TRUE(router->ReadTokens(1, 5, /*acknowledge=*/false));
  // Others run on meanwhile, many steps long; their tokens say that these steps have been.
  const auto state = engine_.OtherState(6, 60, 1);
  Run(*other, 1, state);
  EXPECT_TRUE(other->ReadTokens(1, 60));
  EXPECT_EQ(Metric("tokens_total"), 4 + 59);
  EXPECT_TRUE(router->Acknowledge(1, 5));
  EXPECT_TRUE(router->ReadTokens(1, engine_.oracle().greedy_tokens.size()));
  EXPECT_EQ(router->tokens[1], engine_.oracle().greedy_tokens);
}

TEST_F(SessionTest, CloseFreesInEveryPhase) {
  options_.decode.window = 2;
  Start();
  const auto state = engine_.OracleState();
  const auto router = GreetedRouter();

  router->Lease(1, state);  // reserved
  EXPECT_GT(server_->pools().used_blocks(), 0);
  EXPECT_TRUE(router->Close(1));
  EXPECT_TRUE(AllFree());

  const auto half = Prefill(state, router->Lease(2, state));  // receiving
  const auto push = NewPush();
  EXPECT_TRUE(push->Write(half.rows[0]));
  EXPECT_TRUE(Eventually([&] { return Metric("kv_received_bytes_total") >= half.rows[0].size(); }));
  EXPECT_TRUE(router->Close(2));
  EXPECT_TRUE(AllFree());
  EXPECT_TRUE(push->Write(half.rows[1]));
  EXPECT_EQ(push->Verdict().code(), StatusCode::kAborted);

  Run(*router, 3, state);  // in the batch, waiting for its reader
  EXPECT_TRUE(router->ReadTokens(3, 3, /*acknowledge=*/false));
  EXPECT_TRUE(router->Close(3));
  EXPECT_TRUE(AllFree());

  auto longer = state;  // in the batch, while steps run
  longer.params.max_tokens = 2000;
  Run(*router, 4, longer);
  EXPECT_TRUE(router->ReadTokens(4, 20));
  EXPECT_TRUE(router->Close(4));
  EXPECT_TRUE(AllFree());

  EXPECT_TRUE(router->Close(4));  // again, and what never was: ignored
  EXPECT_TRUE(router->Close(99));
  Run(*router, 5, state);
  EXPECT_TRUE(router->ReadTokens(5, 3));
  EXPECT_EQ(Describe().load().leases(), 1);
}

TEST_F(SessionTest, ABrokenSessionFreesAfterTheGrace) {
  Start();
  auto state = engine_.OracleState();
  state.params.max_tokens = 2000;
  auto router = GreetedRouter();
  router->Lease(1, state);
  Run(*router, 2, state);
  EXPECT_TRUE(router->ReadTokens(2, 2));
  router.reset();
  Gauge& sessions = registry_.AddGauge("cachalot_decode_sessions", "");
  EXPECT_TRUE(Eventually([&] { return sessions.Value() == 0; }));
  EXPECT_EQ(Describe().load().leases(), 2);
  EXPECT_GT(server_->pools().used_blocks(), 0);
  clock_.Advance(options_.leases.session_grace);
  EXPECT_TRUE(AllFree());
  EXPECT_EQ(Describe().load().leases(), 0);
  EXPECT_EQ(Metric("expired_leases_total"), 2);
}

TEST_F(SessionTest, ASilentRouterCountsAsGone) {
  Start();
  const auto router = GreetedRouter();
  router->Lease(1, engine_.OracleState());
  clock_.Advance(options_.leases.heartbeat_timeout);
  EXPECT_FALSE(router->Finish().ok());  // ended by the server
  EXPECT_GT(server_->pools().used_blocks(), 0);
  clock_.Advance(options_.leases.session_grace);
  EXPECT_TRUE(AllFree());
}

TEST_F(SessionTest, HeartbeatsGoBothWays) {
  options_.sessions.heartbeat = std::chrono::milliseconds(60);
  Start();
  const auto router = NewRouter();
  EXPECT_EQ(router->Greet(server_->compat()).heartbeat_ms(), 60u);
  EXPECT_TRUE(router->Heartbeat());
  const auto lease = router->Lease(1, engine_.OracleState());  // Next skips the heartbeats between
  EXPECT_NE(lease.id(), 0u);
  EXPECT_EQ(lease.epoch(), server_->epoch());
}

TEST_F(SessionTest, AnIncompatibleRouterIsRefusedWithTheFieldsName) {
  Start();
  const std::map<std::string, std::function<void(v1::Compat&)>> changes = {
      {"weights", [](v1::Compat& c) { c.set_weights("other"); }},
      {"protocol", [](v1::Compat& c) { c.set_protocol(c.protocol() + 2); }},
      {"state_format", [](v1::Compat& c) { c.set_state_format(99); }},
      {"mode", [](v1::Compat& c) { c.set_mode("bf16"); }},
      {"kv_layout", [](v1::Compat& c) { c.set_kv_layout("other"); }},
      {"reduction_groups", [](v1::Compat& c) { c.set_reduction_groups(4); }},
      {"numerics", [](v1::Compat& c) { c.set_numerics("other"); }},
  };
  for (const auto& [field, change] : changes) {
    v1::Compat compat = server_->compat();
    change(compat);
    const auto router = NewRouter();
    EXPECT_TRUE(router->Hello(compat));
    const Status status = router->Finish();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(StatusMessage(status), HasSubstr(field));
  }
}

TEST_F(SessionTest, BreakingTheProtocolEndsTheSession) {
  Start();
  const auto early = NewRouter();
  early->Open(1, engine_.OracleState());
  EXPECT_EQ(early->Finish().code(), StatusCode::kInvalidArgument);

  const auto twice = GreetedRouter();
  twice->Hello(server_->compat());
  EXPECT_EQ(twice->Finish().code(), StatusCode::kInvalidArgument);

  const auto handle = GreetedRouter();
  handle->Lease(7, engine_.OracleState());
  handle->Open(7, engine_.OracleState());
  const Status status = handle->Finish();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(StatusMessage(status), HasSubstr("handle 7"));

  const auto uneven = GreetedRouter();
  v1::SessionRequest request;
  request.mutable_acknowledge()->add_handles(1);
  uneven->Send(request);
  EXPECT_EQ(uneven->Finish().code(), StatusCode::kInvalidArgument);
}

TEST_F(SessionTest, AnEndedSessionDoesNotWaitForARouterThatReadsNothing) {
  options_.sessions.debug_logits = true;
  Start();
  const auto router = GreetedRouter();
  (void)QueueUnread(*router);
  EXPECT_TRUE(router->Hello(server_->compat()));
  EXPECT_TRUE(Eventually([&] { return !router->Heartbeat(); }));  // once the server has let go of the call
  const Status status = router->Finish();
  EXPECT_EQ(status.code(), StatusCode::kCancelled) << status;
}

TEST_F(SessionTest, ARouterThatReadsNothingLosesItsSessionAndNobodyElse) {
  constexpr size_t kOthersTokens = 30;  // fewer messages than the limit, however late they are sent
  options_.sessions.debug_logits = true;
  options_.sessions.queue_limit = 64;
  options_.leases.heartbeat_timeout = std::chrono::hours(24);
  Start();
  const auto other = GreetedRouter(), router = GreetedRouter();
  // A window of each, 2 KiB a token, is more than gRPC and the queue take.
  auto state = engine_.OtherState(6, 2000, 5);
  state.want_logits = true;
  std::vector<HandOff> hand_offs;
  for (uint64_t handle : {1, 2, 3, 4}) hand_offs.push_back(Prefill(state, router->Lease(handle, state)));
  for (const HandOff& hand_off : hand_offs) EXPECT_TRUE(Push(hand_off).ok());
  Gauge& sessions = registry_.AddGauge("cachalot_decode_sessions", "");
  EXPECT_TRUE(Eventually([&] { return sessions.Value() == 1; }));
  EXPECT_EQ(Metric("expired_leases_total"), 0) << "its requests have the grace to be opened again elsewhere";
  clock_.Advance(options_.leases.session_grace);
  EXPECT_TRUE(Eventually([&] { return Metric("expired_leases_total") == 4; }));
  EXPECT_TRUE(AllFree());
  const auto others = engine_.OtherState(9, kOthersTokens, 7);
  Run(*other, 1, others);
  EXPECT_TRUE(other->ReadTokens(1, kOthersTokens));
  EXPECT_EQ(other->tokens[1], engine_.Generate(others));
  for (uint64_t handle : {1, 2, 3, 4}) router->tokens[handle] = {hand_offs[handle - 1].first_token};
  const Status status = router->Finish();
  EXPECT_EQ(status.code(), StatusCode::kCancelled)
      << "the reason cannot reach one that reads nothing: " << status;
}

TEST_F(SessionTest, ARefusedRequestLeavesTheSessionAlone) {
  Start();
  const auto router = GreetedRouter();
  auto state = engine_.OracleState();
  state.prompt.clear();
  EXPECT_EQ(router->Refusal(1, state).code(), StatusCode::kInvalidArgument);
  state = engine_.OracleState();
  state.prompt[0] = engine_.model().config().vocab_size;
  EXPECT_EQ(router->Refusal(1, state).code(), StatusCode::kInvalidArgument);
  state = engine_.OracleState();
  state.params.max_tokens = 5000;
  EXPECT_EQ(router->Refusal(1, state).code(), StatusCode::kOutOfRange);
  state = engine_.OracleState();
  state.want_logits = true;
  const Status logits = router->Refusal(1, state);
  EXPECT_EQ(logits.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(StatusMessage(logits),
              HasSubstr("forced tokens and logits need a decode worker that runs with --debug-logits"));
  state = engine_.OracleState();
  state.forced = {1};
  EXPECT_EQ(router->Refusal(1, state).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(server_->pools().used_blocks(), 0);
  uint64_t handle = 10;
  for (state = engine_.OracleState(); server_->pools().free_tokens() > 0; ++handle)
    router->Lease(handle, state);
  EXPECT_EQ(router->Refusal(1, state).code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(router->Close(10));
  Run(*router, 1, state);
  EXPECT_TRUE(router->ReadTokens(1, state.params.max_tokens));
  EXPECT_EQ(Metric("refused_total"), 6);
}

TEST_F(SessionTest, DebugLogitsAndForcedTokens) {
  options_.sessions.debug_logits = true;
  Start();
  auto state = engine_.OracleState();
  state.want_logits = true;
  state.forced = engine_.oracle().greedy_tokens;
  const auto router = GreetedRouter();
  Run(*router, 1, state);
  EXPECT_TRUE(router->ReadTokens(1, state.params.max_tokens));
  const size_t vocab = engine_.model().config().vocab_size;
  ASSERT_EQ(router->logits[1].size(), state.params.max_tokens - 1u);
  for (size_t i = 0; i < router->logits[1].size(); ++i) {
    std::vector<float> row(vocab);
    ASSERT_EQ(router->logits[1][i].size(), vocab * sizeof(float));
    std::memcpy(row.data(), router->logits[1][i].data(), vocab * sizeof(float));
    for (size_t v = 0; v < vocab; ++v)
      ASSERT_NEAR(row[v], engine_.oracle().greedy_logits[(i + 1) * vocab + v], 1e-4) << i << " " << v;
  }
}

TEST_F(SessionTest, AStepInSeveralMessagesIsTheSameStep) {
  options_.sessions.debug_logits = true;
  options_.sessions.step_batch_bytes = 1;
  Start();
  auto state = engine_.OracleState();
  state.want_logits = true;
  const auto router = GreetedRouter();
  for (const uint64_t handle : {1, 2}) Run(*router, handle, state);
  for (const uint64_t handle : {1, 2}) {
    EXPECT_TRUE(router->ReadTokens(handle, state.params.max_tokens));
    EXPECT_EQ(router->tokens[handle], engine_.oracle().greedy_tokens);
    EXPECT_EQ(router->logits[handle].size(), state.params.max_tokens - 1u);
  }
  EXPECT_EQ(router->largest_step, 1);
}

TEST_F(SessionTest, DrainingFinishesWhatRunsAndTakesNothingNew) {
  Start();
  const auto router = GreetedRouter();
  const auto state = engine_.OracleState();
  const auto hand_off = Prefill(state, router->Lease(1, state));
  std::thread drain([&] { server_->Drain(testing::kPatience); });
  auto health = ::grpc::health::v1::Health::NewStub(channel_);
  EXPECT_TRUE(Eventually([&] {
    grpc::ClientContext context;
    ::grpc::health::v1::HealthCheckRequest request;
    ::grpc::health::v1::HealthCheckResponse response;
    request.set_service("readiness");
    return health->Check(&context, request, &response).ok() &&
           response.status() == ::grpc::health::v1::HealthCheckResponse::NOT_SERVING;
  }));
  const Status refusal = router->Refusal(2, state);
  EXPECT_EQ(refusal.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(refusal), HasSubstr("draining"));
  router->tokens[1] = {hand_off.first_token};
  EXPECT_TRUE(Push(hand_off).ok());  // a lease granted before is served to its end
  EXPECT_EQ(router->Finish().code(), StatusCode::kUnavailable);
  EXPECT_EQ(router->tokens[1], engine_.oracle().greedy_tokens);
  drain.join();
  server_->Stop();
}

TEST_F(SessionTest, StoppingUnderLoadFreesEverything) {
  Start();
  auto state = engine_.OracleState();
  state.params.max_tokens = 2000;
  const auto router = GreetedRouter();
  Run(*router, 1, state);
  router->Lease(2, state);
  EXPECT_TRUE(router->ReadTokens(1, 3));
  server_->Stop();
  EXPECT_FALSE(router->Finish().ok());
}

TEST_F(SessionTest, ItDescribesItselfAndItsHealth) {
  Start();
  const auto description = Describe();
  EXPECT_EQ(description.role(), v1::ROLE_DECODE);
  EXPECT_EQ(description.epoch(), server_->epoch());
  EXPECT_EQ(description.compat().weights(), engine_.weights()->fingerprint);
  EXPECT_GE(description.load().free_kv_tokens(), 16384);
  for (const char* service : {"", "liveness", "readiness"})
    EXPECT_TRUE(Eventually([&] { return Healthy(service); })) << service;
}

// ---- experts

class FailingExperts final : public ExpertBackend {
 public:
  FailingExperts(ExpertBackend& inner, Status error) : inner_(inner), error_(std::move(error)) {}
  Status Begin(const ExpertCall& call) override { return inner_.Begin(call); }
  Status Wait() override { return failing ? error_ : inner_.Wait(); }
  std::atomic<bool> failing{true};

 private:
  ExpertBackend& inner_;
  const Status error_;
};

class ExpertsTest : public testing::ServiceTest {
 protected:
  void StartFailing(const Status& error) {
    Start([this, error](rpc::Loop* loop) -> StatusOr<std::unique_ptr<ExpertBackend>> {
      local_ = *server_->LocalBackend()(loop);
      auto experts = std::make_unique<FailingExperts>(*local_, error);
      experts_ = experts.get();
      return experts;
    });
  }
  std::unique_ptr<ExpertBackend> local_;
  FailingExperts* experts_ = nullptr;
};

TEST_F(ExpertsTest, AnOutageParksAndChangesNoToken) {
  StartFailing(Unavailable("shard 0/1 is away"));
  const auto router = GreetedRouter();
  Run(*router, 1, engine_.OracleState());
  Run(*router, 2, engine_.OracleState());
  EXPECT_TRUE(Eventually([&] { return Describe().load().running_sequences() == 2; }));
  EXPECT_TRUE(router->Close(2));  // served meanwhile
  EXPECT_TRUE(Eventually([&] { return Describe().load().running_sequences() == 1; }));
  EXPECT_TRUE(Eventually([&] { return Metric("expert_failures_total") > 1; })) << "it tries again";
  experts_->failing = false;
  EXPECT_TRUE(router->ReadTokens(1, engine_.oracle().greedy_tokens.size()));
  EXPECT_EQ(router->tokens[1], engine_.oracle().greedy_tokens);
}

TEST_F(ExpertsTest, AnOutageBeyondTheGraceFailsTheRequest) {
  options_.leases.heartbeat_timeout = std::chrono::hours(24);
  StartFailing(Unavailable("shard 0/1 is away"));
  const auto router = GreetedRouter();
  Run(*router, 1, engine_.OracleState());
  EXPECT_TRUE(Eventually([&] { return Describe().load().running_sequences() == 1; }));
  std::atomic<bool> failed{false};
  std::thread time([&] {  // the first failed step starts the grace, whenever that is
    while (!failed) {
      clock_.Advance(std::chrono::milliseconds(1));
      std::this_thread::yield();
    }
  });
  EXPECT_FALSE(router->ReadTokens(1, 2));
  failed = true;
  time.join();
  EXPECT_EQ(router->failed[1].code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(router->failed[1]), HasSubstr("shard 0/1"));
  EXPECT_TRUE(AllFree());
}

TEST_F(ExpertsTest, SessionsAndProbesAreServedWhileTheExpertsAreAwaited) {
  options_.sessions.heartbeat = std::chrono::milliseconds(60);
  std::promise<void> listens, ready;
  server_ = std::make_unique<DecodeServer>(engine_.weights(), **kernels::SelectKernels("auto"), clock_,
                                           registry_, options_);
  std::thread start([&] {
    const Status started = server_->Start([&](rpc::Loop* loop) {
      listens.set_value();
      ready.get_future().wait();
      return server_->LocalBackend()(loop);
    });
    EXPECT_TRUE(started.ok()) << started;
  });
  listens.get_future().wait();
  address_ = "127.0.0.1:" + std::to_string(server_->port());
  channel_ = rpc::CreateChannel(address_);
  EXPECT_TRUE(Eventually([&] { return Healthy("liveness"); }));
  EXPECT_FALSE(Healthy("readiness"));
  const auto router = GreetedRouter(), silent = GreetedRouter();
  EXPECT_EQ(router->Refusal(1, engine_.OracleState()).code(), StatusCode::kUnavailable);
  EXPECT_TRUE(router->NextOfAnyKind().has_heartbeat());
  clock_.Advance(options_.leases.heartbeat_timeout);
  EXPECT_FALSE(silent->Finish().ok());  // ended by the server
  ready.set_value();
  start.join();
  EXPECT_TRUE(Eventually([&] { return Healthy("readiness"); }));
}

TEST_F(ExpertsTest, ExpertsThatCannotBeMadeEndTheStart) {
  DecodeServer server(engine_.weights(), **kernels::SelectKernels("auto"), clock_, registry_, options_);
  const Status status = server.Start([](rpc::Loop*) -> StatusOr<std::unique_ptr<ExpertBackend>> {
    return DeadlineExceeded("experts at nowhere:1 are silent");
  });
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace cachalot

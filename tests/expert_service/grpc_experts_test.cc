// Expert services over real gRPC in one process: ConnectExperts, the bits, restarts.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "common/cluster/compat.h"
#include "common/moe/connect_experts.h"
#include "common/moe/expert_frame.h"
#include "common/moe/expert_method.h"
#include "common/rpc/client.h"
#include "common/transport/grpc_transport.h"
#include "expert_service/service.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "tests/expert_service/worker.h"
#include "tests/support/own_address.h"

namespace cachalot {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::OwnAddress;
using testing::OwnHost;
using testing::Worker;

// As the binaries do; before gRPC starts.
const int kPollStrategySet = setenv("GRPC_POLL_STRATEGY", "poll", /*overwrite=*/0);

constexpr Duration kLong = std::chrono::seconds(20);

ExpertServiceConfig ConfigOf(int shard, int shards, const std::string& listen = "127.0.0.1:0") {
  ExpertServiceConfig config;
  config.listen = listen;
  config.model = testing::TinyDirectory();
  config.shard = std::to_string(shard) + "/" + std::to_string(shards);
  config.threads = 1;
  return config;
}

class GrpcExperts : public ::testing::Test {
 protected:
  GrpcExperts() : ids_(worker_.prompt()), want_(worker_.RunLocal()) {}

  /// `own`: where others can be started later, or nobody is.
  void StartServices(int shards, bool own = false) {
    services_.clear();
    addresses_.clear();
    for (int s = 0; s < shards; ++s) {
      const std::string listen = own ? OwnAddress(1 + s) : "127.0.0.1:0";
      services_.push_back(*ExpertService::Start(ConfigOf(s, shards, listen), &metrics_));
      addresses_.push_back(services_.back()->address());
    }
  }
  StatusOr<std::unique_ptr<RemoteExperts>> Connect(const ConnectExpertsOptions& options = {}) {
    return ConnectExperts(addresses_, &loop_, worker_.compat(), worker_.experts(), options);
  }
  void ExpectRefused(StatusCode code, const ::testing::Matcher<std::string>& message, Duration wait = kLong) {
    const auto backend = Connect({.wait = wait});
    EXPECT_EQ(backend.status().code(), code) << backend.status();
    EXPECT_THAT(StatusMessage(backend.status()), message);
  }
  /// Runs until it succeeds: the deadline only guards against hanging.
  StatusOr<std::vector<float>> RunUntilOk(ExpertBackend& backend) {
    const TimePoint deadline = loop_.Now() + kLong;
    for (;;) {
      auto got = worker_.Run(backend, ids_, ids_.size());
      if (got.ok() || loop_.Now() > deadline) return got;
      EXPECT_EQ(got.status().code(), StatusCode::kUnavailable) << got.status();
    }
  }

  MetricsRegistry metrics_;
  Worker worker_;
  const std::vector<int32_t> ids_;
  const std::vector<float> want_;
  rpc::Loop loop_;
  std::vector<std::unique_ptr<ExpertService>> services_;
  std::vector<std::string> addresses_;
};

TEST_F(GrpcExperts, GiveTheLogitsOfLocalExpertsForEveryShardCount) {
  for (int shards : {1, 2, 4, 8}) {
    StartServices(shards);
    std::reverse(addresses_.begin(), addresses_.end());
    const auto backend = Connect();
    ASSERT_TRUE(backend.ok()) << backend.status();
    for (size_t chunk : {ids_.size(), size_t{7}, size_t{1}}) {
      const auto got = worker_.Run(**backend, ids_, chunk);
      ASSERT_TRUE(got.ok()) << got.status();
      EXPECT_EQ(want_, *got) << shards << " shards, " << chunk << " tokens a step";
    }
    EXPECT_EQ((*backend)->stats().stale_replies, 0u);
  }
}

TEST_F(GrpcExperts, TwoCallersAtOnceGetTheBitsThatEachGetsAlone) {
  StartServices(2);
  std::vector<std::thread> callers;
  for (int i = 0; i < 2; ++i) {
    callers.emplace_back([&, i] {
      rpc::Loop loop;
      Worker worker;
      const auto backend = ConnectExperts(addresses_, &loop, worker.compat(), worker.experts());
      ASSERT_TRUE(backend.ok()) << backend.status();
      for (int round = 0; round < 3; ++round) {
        const auto got = worker.Run(**backend, ids_, 1 + i);
        ASSERT_TRUE(got.ok()) << got.status();
        EXPECT_EQ(want_, *got);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST_F(GrpcExperts, ARestartedServiceIsFoundAgainByBegin) {
  StartServices(2, /*own=*/true);
  const auto backend = *Connect();
  EXPECT_EQ(want_, *worker_.Run(*backend, ids_, ids_.size()));
  const uint64_t old_epoch = services_[1]->epoch();
  services_[1].reset();
  const auto away = worker_.Run(*backend, ids_, ids_.size());
  EXPECT_EQ(away.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(away.status()), AllOf(HasSubstr("shard 1/2"), HasSubstr(addresses_[1])));
  services_[1] = *ExpertService::Start(ConfigOf(1, 2, addresses_[1]), &metrics_);
  EXPECT_NE(services_[1]->epoch(), old_epoch);
  const TimePoint begin = loop_.Now();
  const auto again = RunUntilOk(*backend);  // no call of it may wait for its deadline
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(want_, *again);
  RecordProperty("recovery_ms", std::to_string(Seconds(loop_.Now() - begin) * 1000));
}

TEST_F(GrpcExperts, AnotherShardInItsPlaceIsRefused) {
  StartServices(2, /*own=*/true);
  const auto backend = *Connect();
  services_[1].reset();
  services_[1] = *ExpertService::Start(ConfigOf(0, 2, addresses_[1]), &metrics_);
  StatusOr<std::vector<float>> got;
  const TimePoint deadline = loop_.Now() + kLong;
  do {
    got = worker_.Run(*backend, ids_, ids_.size());
  } while (got.status().code() == StatusCode::kUnavailable && loop_.Now() < deadline);
  EXPECT_EQ(got.status().code(), StatusCode::kFailedPrecondition) << got.status();
  EXPECT_THAT(StatusMessage(got.status()), HasSubstr("came back as another shard"));
}

TEST_F(GrpcExperts, ServicesMayComeUpWhileTheWorkerWaits) {
  addresses_ = {OwnAddress(1), OwnAddress(2)};
  std::thread start([&] {
    for (int s = 0; s < 2; ++s)
      services_.push_back(*ExpertService::Start(ConfigOf(s, 2, addresses_[s]), &metrics_));
  });
  const auto backend = Connect({.wait = kLong, .log_every = std::chrono::milliseconds(100)});
  start.join();
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ(want_, *worker_.Run(**backend, ids_, ids_.size()));
}

TEST_F(GrpcExperts, ConnectSaysWhoIsSilentMissingOrDifferent) {
  StartServices(2, /*own=*/true);
  const auto all = addresses_;
  addresses_ = {all[0]};
  ExpectRefused(StatusCode::kFailedPrecondition, HasSubstr("no expert service for shard 1 of 2"));
  addresses_ = {all[0], all[0]};
  ExpectRefused(StatusCode::kFailedPrecondition, HasSubstr("given twice"));
  services_[1].reset();
  addresses_ = all;
  ExpectRefused(
      StatusCode::kDeadlineExceeded,
      AllOf(HasSubstr("after 0.3 s there is still no answer from expert service "), HasSubstr(all[1] + " (")),
      std::chrono::milliseconds(300));
  const auto given_up = Connect({.give_up = [] { return true; }});
  EXPECT_EQ(given_up.status().code(), StatusCode::kCancelled);
  if (std::string((*kernels::SelectKernels("auto"))->name) == "ref") return;
  ExpertServiceConfig other = ConfigOf(1, 2);
  other.kernels = "ref";
  services_[1] = *ExpertService::Start(other, &metrics_);
  addresses_[1] = services_[1]->address();
  ExpectRefused(StatusCode::kFailedPrecondition, AllOf(HasSubstr("numerics"), HasSubstr(addresses_[1])));
}

TEST_F(GrpcExperts, AServiceThatTakesFewerRowsThanAStepHasDoesNotFit) {
  StartServices(2);
  ExpertServiceConfig small = ConfigOf(1, 2);
  small.max_call_rows = 16;
  services_[1] = *ExpertService::Start(small, &metrics_);
  addresses_[1] = services_[1]->address();
  const auto refused = Connect({.step_rows = 17, .step_rows_flag = "--max-batch"});
  EXPECT_EQ(refused.status().code(), StatusCode::kFailedPrecondition) << refused.status();
  EXPECT_THAT(StatusMessage(refused.status()),
              AllOf(HasSubstr(addresses_[1] + " takes at most 16 rows in a call (its --max-call-rows)"),
                    HasSubstr("17 (--max-batch)")));
  EXPECT_TRUE(Connect({.step_rows = 16, .step_rows_flag = "--max-batch"}).ok());
  const auto unknowing = Connect();  // as a worker that does not compare, or a service that does not say
  ASSERT_TRUE(unknowing.ok()) << unknowing.status();
  ASSERT_GT(ids_.size(), 16u);
  EXPECT_EQ(worker_.Run(**unknowing, ids_, ids_.size()).status().code(), StatusCode::kInternal);
  EXPECT_EQ(want_, *worker_.Run(**unknowing, ids_, 16));
}

TEST_F(GrpcExperts, AStepWhoseFramesAreTooLongDoesNotFit) {
  const ModelConfig& model = worker_.model();
  ConnectExpertsOptions options{.step_rows = 16, .step_rows_flag = "--max-chunk-tokens"};
  options.hidden = model.hidden_size;
  options.experts_per_row = model.num_experts_per_tok;
  const auto longest = [&](int shards) {
    return LongestExpertFrames(
        {model.hidden_size, model.num_experts_per_tok, worker_.experts() / shards, kReductionGroups / shards},
        16);
  };
  // With few shards the replies are the longest, with a group a shard the calls.
  for (const auto& [shards, what, bytes] :
       {std::tuple(2, "reply", longest(2).reply), std::tuple(8, "call", longest(8).call)}) {
    SCOPED_TRACE(what);
    StartServices(shards);
    options.max_frame_bytes = bytes - 1;
    const auto refused = Connect(options);
    EXPECT_EQ(refused.status().code(), StatusCode::kFailedPrecondition) << refused.status();
    EXPECT_THAT(StatusMessage(refused.status()),
                HasSubstr("expert service " + addresses_[0] +
                          ": a step here may have 16 rows (--max-chunk-tokens), whose " + what +
                          " may have " + std::to_string(bytes) + " bytes; a frame has at most " +
                          std::to_string(bytes - 1) + ", enough for 15 rows: lower --max-chunk-tokens"));
    options.max_frame_bytes = bytes;
    const auto fits = Connect(options);
    ASSERT_TRUE(fits.ok()) << fits.status();
    EXPECT_EQ(want_, *worker_.Run(**fits, ids_, 16));
  }
}

/// A name whose addresses are of loopback, all at one port.
class NamedResolver final : public Resolver {
 public:
  void Resolve(const std::string& name, Done done) override {
    std::lock_guard lock(mutex_);
    ++asked_;
    if (addresses_.empty()) return done(NotFound(name + ": no address"));
    done(addresses_);
  }
  void Set(std::vector<std::string> addresses) {
    std::lock_guard lock(mutex_);
    addresses_ = std::move(addresses);
  }
  int asked() {
    std::lock_guard lock(mutex_);
    return asked_;
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> addresses_;
  int asked_ = 0;
};

class NamedExperts : public GrpcExperts {
 protected:
  void StartAt(int host, int shard, int shards) {
    auto service = ExpertService::Start(ConfigOf(shard, shards, OwnAddress(host)), &metrics_);
    ASSERT_TRUE(service.ok()) << service.status();
    at_[host] = std::move(*service);
  }
  void Publish(const std::vector<int>& hosts) {
    std::vector<std::string> addresses;
    for (const int host : hosts) addresses.push_back(OwnHost(host));
    resolver_->Set(addresses);
  }
  StatusOr<std::unique_ptr<RemoteExperts>> ConnectByName(Duration wait = kLong) {
    addresses_ = {"dns:experts.test:" + std::to_string(testing::kOwnPort)};
    ConnectExpertsOptions options{.wait = wait};
    options.resolver = resolver_;
    options.names = {std::chrono::milliseconds(50), std::chrono::milliseconds(5)};
    return Connect(options);
  }
  void ExpectTheBits(RemoteExperts& backend) {
    const auto got = RunUntilOk(backend);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(want_, *got);
  }

  /// Connected to the services at `hosts`, and right; null when not.
  std::unique_ptr<RemoteExperts> WorkingWith(const std::vector<int>& hosts) {
    Publish(hosts);
    auto backend = ConnectByName();
    EXPECT_TRUE(backend.ok()) << backend.status();
    if (!backend.ok()) return nullptr;
    ExpectTheBits(**backend);
    return std::move(*backend);
  }

  std::map<int, std::unique_ptr<ExpertService>> at_;
  const std::shared_ptr<NamedResolver> resolver_ = std::make_shared<NamedResolver>();
};

TEST_F(NamedExperts, AllShardsOfANameInAnyOrder) {
  StartAt(1, 1, 2);
  StartAt(2, 0, 2);
  const auto backend = WorkingWith({1, 2});
  ASSERT_TRUE(backend);
}

TEST_F(NamedExperts, MissingShardsAreNamedAndWaitedFor) {
  StartAt(1, 1, 4);
  const auto unresolved = ConnectByName(std::chrono::milliseconds(50));
  EXPECT_EQ(unresolved.status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(StatusMessage(unresolved.status()),
              AllOf(HasSubstr("no expert service is known"), HasSubstr("dns:experts.test:"), HasSubstr("no address")));
  StartAt(3, 3, 4);
  Publish({1, 2, 3});  // nobody is at 2
  const auto some = ConnectByName(std::chrono::milliseconds(500));
  EXPECT_EQ(some.status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(StatusMessage(some.status()),
              AllOf(HasSubstr("after 0.5 s: no expert service for shard 0, 2 of 4; 2 given"),
                    HasSubstr("no answer from " + OwnAddress(2))));
  std::thread later([&] {
    const int before = resolver_->asked();
    while (resolver_->asked() < before + 3) std::this_thread::yield();
    StartAt(2, 2, 4);
    StartAt(4, 0, 4);
    Publish({1, 2, 3, 4});
  });
  const auto backend = ConnectByName();
  later.join();
  ASSERT_TRUE(backend.ok()) << backend.status();
  ExpectTheBits(**backend);
}

TEST_F(NamedExperts, WhatDoesNotFitIsPassedOver) {
  StartAt(1, 0, 2);
  StartAt(2, 1, 4);  // of another layout
  StartAt(3, 1, 2);
  StartAt(4, 1, 2);  // a replica
  const auto backend = WorkingWith({2, 1, 3, 4});
  ASSERT_TRUE(backend);
}

TEST_F(NamedExperts, ALostShardIsFoundAtItsNewAddress) {
  StartAt(1, 0, 2);
  StartAt(2, 1, 2);
  const auto backend = WorkingWith({1, 2});
  ASSERT_TRUE(backend);
  at_.erase(2);
  const auto away = worker_.Run(*backend, ids_, ids_.size());
  EXPECT_EQ(away.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(away.status()), HasSubstr("shard 1/2 at " + OwnAddress(2)));
  StartAt(3, 1, 2);
  StartAt(4, 0, 2);  // a shard that is not lost
  Publish({1, 3, 4});
  ExpectTheBits(*backend);
  // And again, from there; messages know the new place.
  at_.erase(3);
  EXPECT_THAT(StatusMessage(worker_.Run(*backend, ids_, ids_.size()).status()),
              HasSubstr("shard 1/2 at " + OwnAddress(3)));
  // Its old address may be another shard's now.
  StartAt(3, 0, 2);
  StartAt(2, 1, 2);
  Publish({1, 2, 3});
  ExpectTheBits(*backend);
}

TEST_F(NamedExperts, ShardsThatExchangeAddressesAreFoundAgain) {
  StartAt(1, 0, 2);
  StartAt(2, 1, 2);
  const auto backend = WorkingWith({1, 2});
  ASSERT_TRUE(backend);
  at_.clear();
  StartAt(1, 1, 2);
  StartAt(2, 0, 2);
  ExpectTheBits(*backend);
}

TEST_F(NamedExperts, AShardIsFoundWhereAnotherWasThatMoved) {
  StartAt(1, 0, 2);
  StartAt(2, 1, 2);
  const auto backend = WorkingWith({1, 2});
  ASSERT_TRUE(backend);
  at_.clear();
  StartAt(2, 0, 2);
  StartAt(3, 1, 2);
  Publish({2, 3});
  ExpectTheBits(*backend);
}

TEST_F(NamedExperts, ShardsThatMoveInACircleAreFoundAgain) {
  constexpr int kShards = 4;
  for (int s = 0; s < kShards; ++s) StartAt(1 + s, s, kShards);
  const auto backend = WorkingWith({1, 2, 3, 4});
  ASSERT_TRUE(backend);
  at_.clear();
  for (int s = 0; s < kShards; ++s) StartAt(1 + s, (s + 1) % kShards, kShards);
  ExpectTheBits(*backend);
}

TEST_F(NamedExperts, OneThatComesBackWhereItWasIsUsedAgain) {
  StartAt(1, 0, 1);
  Publish({1});
  const auto backend = ConnectByName();
  ASSERT_TRUE(backend.ok()) << backend.status();
  at_.erase(1);
  EXPECT_FALSE(worker_.Run(**backend, ids_, ids_.size()).ok());
  resolver_->Set({});  // and DNS knows nothing
  StartAt(1, 0, 1);
  ExpectTheBits(**backend);
}

TEST_F(GrpcExperts, AStreamForAnotherEpochIsRefused) {
  StartServices(1);
  const auto channel = OpenGrpcChannel(&loop_, rpc::CreateChannel(addresses_[0]), kExpertDispatchMethod,
                                       {.peer = addresses_[0], .metadata = {{kExpertEpochKey, "0123"}}});
  const TimePoint deadline = loop_.Now() + kLong;
  while (channel->status().ok() && loop_.Now() < deadline) loop_.PollOnce(deadline);
  EXPECT_EQ(channel->status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(StatusMessage(channel->status()), HasSubstr("epoch"));
}

TEST_F(GrpcExperts, GarbageOnAStreamHurtsNobody) {
  StartServices(1);
  const auto backend = *Connect();
  const auto channel = OpenGrpcChannel(&loop_, rpc::CreateChannel(addresses_[0]), kExpertDispatchMethod,
                                       {.peer = addresses_[0]});
  ASSERT_TRUE(channel->Post({std::vector<std::byte>(1000, std::byte{0xab})}, loop_.Now() + kLong).ok());
  std::optional<Frame> frame;
  const TimePoint deadline = loop_.Now() + kLong;
  while (!(frame = channel->Poll()) && loop_.Now() < deadline) loop_.PollOnce(deadline);
  ASSERT_TRUE(frame);
  const auto view = ParseExpertFrame(frame->bytes);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->header.kind, ExpertFrameKind::kError);
  EXPECT_THAT(StatusMessage(DecodeExpertError(*view)), HasSubstr("magic"));
  EXPECT_EQ(want_, *worker_.Run(*backend, ids_, ids_.size()));
  EXPECT_THAT(metrics_.Text(), HasSubstr("cachalot_expert_errors_total 1"));
}

TEST_F(GrpcExperts, DescribeAndHealthAnswer) {
  StartServices(2);
  const auto channel = grpc::CreateChannel(addresses_[1], grpc::InsecureChannelCredentials());
  const auto with_deadline = [](grpc::ClientContext& context) {
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  };
  v1::Description description;
  {
    grpc::ClientContext context;
    with_deadline(context);
    ASSERT_TRUE(v1::Cluster::NewStub(channel)->Describe(&context, {}, &description).ok());
  }
  EXPECT_EQ(description.role(), v1::ROLE_EXPERT);
  EXPECT_EQ(description.epoch(), services_[1]->epoch());
  EXPECT_EQ(description.shard(), 1u);
  EXPECT_EQ(description.shards(), 2u);
  EXPECT_EQ(static_cast<int>(description.expert_begin()), worker_.experts() / 2);
  EXPECT_EQ(static_cast<int>(description.expert_end()), worker_.experts());
  EXPECT_TRUE(CheckCompat(worker_.compat(), description.compat(), "it").ok());
  for (const char* service : {"", "liveness", "readiness"}) {
    const auto health = grpc::health::v1::Health::NewStub(channel);
    grpc::health::v1::HealthCheckRequest request;
    grpc::health::v1::HealthCheckResponse response;
    request.set_service(service);
    const TimePoint deadline = loop_.Now() + kLong;
    do {  // liveness is set by the first heartbeat
      grpc::ClientContext context;
      with_deadline(context);
      ASSERT_TRUE(health->Check(&context, request, &response).ok());
    } while (response.status() != grpc::health::v1::HealthCheckResponse::SERVING && loop_.Now() < deadline);
    EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::SERVING) << service;
  }
}

TEST_F(GrpcExperts, StopAnswersWhatHasArrivedAndTellsTheCallers) {
  StartServices(1);
  const auto backend = *Connect();
  EXPECT_EQ(want_, *worker_.Run(*backend, ids_, ids_.size()));
  std::atomic<bool> stopped{false};
  std::thread stop([&] {
    services_[0]->Stop(kLong);
    stopped = true;
  });
  StatusOr<std::vector<float>> got;
  const TimePoint deadline = loop_.Now() + kLong;
  do {
    got = worker_.Run(*backend, ids_, 1);
    if (got.ok()) {
      EXPECT_EQ(want_, *got);
    }
  } while (got.ok() && loop_.Now() < deadline);
  EXPECT_EQ(got.status().code(), StatusCode::kUnavailable) << got.status();
  // A server says goodbye and waits for the client's answer: workers go on polling, so does this test.
  while (!stopped && loop_.Now() < deadline) loop_.PollOnce(loop_.Now() + std::chrono::milliseconds(10));
  stop.join();
}

TEST_F(GrpcExperts, WrongConfigurationsDoNotStart) {
  ExpertServiceConfig config = ConfigOf(0, 1);
  config.mode = "official";
  EXPECT_EQ(ExpertService::Start(config, &metrics_).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ExpertService::Start(ConfigOf(0, 3), &metrics_).status().code(), StatusCode::kInvalidArgument);
  config = ConfigOf(0, 1);
  config.model = "/nonexistent";
  EXPECT_EQ(ExpertService::Start(config, &metrics_).status().code(), StatusCode::kNotFound);
  StartServices(1);
  const auto taken = ExpertService::Start(ConfigOf(0, 1, addresses_[0]), &metrics_);
  EXPECT_EQ(taken.status().code(), StatusCode::kUnavailable) << taken.status();
}

}  // namespace
}  // namespace cachalot

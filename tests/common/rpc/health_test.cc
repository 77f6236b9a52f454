#include "common/rpc/health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "common/rpc/block_on.h"
#include "common/rpc/client_stream.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace cachalot::rpc {
namespace {

namespace proto = ::grpc::health::v1;
using Serving = proto::HealthCheckResponse;
using std::chrono::seconds;

class HealthTest : public testing::Test {
 protected:
  HealthTest() {
    server_loop_ = server_.AddLoop({.name = "health"});
    service_ = std::make_unique<HealthService>(&server_, server_loop_, &state_);
    CHECK(server_.Start().ok());
    server_loop_->Start();
    loop_.Start();
    stub_ = proto::Health::NewStub(CreateChannel("127.0.0.1:" + std::to_string(server_.port())));
  }
  ~HealthTest() override { server_.Shutdown(Duration::zero()); }

  StatusOr<int> Check(const std::string& service) {
    proto::HealthCheckRequest request;
    request.set_service(service);
    CallOptions options{.deadline = loop_.Now() + seconds(20)};
    auto response = BlockOn(
        &loop_, UnaryCall(&loop_, stub_.get(), &proto::Health::Stub::PrepareAsyncCheck, request, options),
        seconds(30), "Check");
    if (!response.ok()) return response.status();
    return static_cast<int>(response->status());
  }

  HealthState state_;
  std::unique_ptr<HealthService> service_;
  Server server_{ServerOptions{}};
  Loop* server_loop_ = nullptr;
  Loop loop_;
  std::unique_ptr<proto::Health::Stub> stub_;
};

TEST_F(HealthTest, Check) {
  EXPECT_EQ(Check("").value(), Serving::NOT_SERVING);
  EXPECT_EQ(Check("liveness").value(), Serving::NOT_SERVING);
  state_.Set("readiness", true);
  EXPECT_EQ(Check("readiness").value(), Serving::SERVING);
  EXPECT_EQ(Check("elsewhere").status().code(), StatusCode::kNotFound);
}

// Reads states; after each it sets what comes next, so that every change is seen.
Task<std::vector<int>> WatchAll(Loop* loop, proto::Health::Stub* stub, HealthState* state, Status* status) {
  proto::HealthCheckRequest request;
  request.set_service("new");
  ClientReader<Serving> watch(loop, {.deadline = loop->Now() + seconds(20)});
  EXPECT_TRUE(co_await watch.Start(stub, &proto::Health::Stub::PrepareAsyncWatch, request));
  std::vector<int> seen;
  Serving response;
  while (co_await watch.Read(&response)) {
    seen.push_back(response.status());
    if (seen.size() == 1) state->Set("new", false);
    if (seen.size() == 2) state->Set("new", true);
    if (seen.size() == 3) state->Close();
  }
  *status = co_await watch.Finish();
  co_return seen;
}

TEST_F(HealthTest, WatchSeesEveryChangeAndTheEnd) {
  Status status;
  EXPECT_THAT(BlockOn(&loop_, WatchAll(&loop_, stub_.get(), &state_, &status), seconds(30), "Watch").value(),
              testing::ElementsAre(Serving::SERVICE_UNKNOWN, Serving::NOT_SERVING, Serving::SERVING,
                                   Serving::NOT_SERVING));
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
}

Task<Status> WatchOne(Loop* loop, proto::Health::Stub* stub) {
  ClientReader<Serving> watch(loop, {.deadline = loop->Now() + seconds(20)});
  EXPECT_TRUE(
      co_await watch.Start(stub, &proto::Health::Stub::PrepareAsyncWatch, proto::HealthCheckRequest()));
  Serving response;
  EXPECT_TRUE(co_await watch.Read(&response));
  watch.TryCancel();
  co_return co_await watch.Finish();
}

TEST_F(HealthTest, AWatchEndsWithItsClient) {
  EXPECT_EQ(BlockOn(&loop_, WatchOne(&loop_, stub_.get()), seconds(30), "Watch").code(),
            StatusCode::kCancelled);
  server_.Shutdown(seconds(20));  // returns at once: nothing is open
}

}  // namespace
}  // namespace cachalot::rpc

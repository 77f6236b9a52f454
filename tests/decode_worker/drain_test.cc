// A drain over real gRPC, with a router that does not keep up.

#include <future>

#include "tests/decode_worker/service_harness.h"

namespace cachalot {
namespace {

using testing::Eventually;

class DrainTest : public testing::ServiceTest {};

TEST_F(DrainTest, WhatIsQueuedForASlowRouterIsSentBeforeTheEnd) {
  options_.sessions.debug_logits = true;
  options_.sessions.last_words = testing::kPatience;
  Start();
  const auto router = GreetedRouter();
  const SequenceState state = QueueUnread(*router);

  std::promise<void> stopped;
  std::thread end([&] {
    server_->Drain(testing::kPatience);
    server_->Stop();
    stopped.set_value();
  });
  Gauge& sessions = registry_.AddGauge("cachalot_decode_sessions", "");
  EXPECT_TRUE(Eventually([&] { return sessions.Value() == 0; }));  // over, but for what is queued
  // Nothing ends before the router reads, however long that takes; what does not wait has cut it by then.
  EXPECT_EQ(stopped.get_future().wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  const Status status = router->Finish();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
  const auto tokens = engine_.Generate(state);
  for (uint64_t handle : {1, 2, 3, 4}) EXPECT_EQ(router->tokens[handle], tokens) << handle;
  end.join();
}

TEST_F(DrainTest, ASessionThatComesWhileOthersAreFlushedEndsAtOnce) {
  options_.sessions.debug_logits = true;
  options_.sessions.last_words = testing::kPatience;
  Start();
  const auto slow = GreetedRouter();
  QueueUnread(*slow);
  const auto other = GreetedRouter();
  std::thread end([&] { server_->Drain(testing::kPatience); });
  EXPECT_EQ(other->Finish().code(), StatusCode::kUnavailable);  // it has been told, as all have
  const auto late = NewRouter();
  late->Hello(server_->compat());
  EXPECT_EQ(late->Next().message_case(), v1::SessionResponse::MESSAGE_NOT_SET) << "it was greeted";
  EXPECT_EQ(late->Finish().code(), StatusCode::kUnavailable);
  EXPECT_EQ(slow->Finish().code(), StatusCode::kUnavailable);
  end.join();
}

}  // namespace
}  // namespace cachalot

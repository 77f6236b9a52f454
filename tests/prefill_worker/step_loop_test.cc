#include "prefill_worker/step_loop.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <utility>

#include "tests/prefill_worker/prefill_flow_fixture.h"
#include "tests/support/patience.h"

namespace cachalot::testing {
namespace {

/// Experts that poll the step thread's loop while they compute, as remote ones do.
class PollingExperts final : public ExpertBackend {
 public:
  PollingExperts(ExpertBackend& inner, rpc::Loop* loop, std::function<void()>* once)
      : inner_(inner), loop_(loop), once_(once) {}
  Status Begin(const ExpertCall& call) override {
    if (*once_) std::exchange(*once_, nullptr)();
    while (loop_->PollOnce(TimePoint::min()) == rpc::Loop::Poll::kProgress) {
    }
    return inner_.Begin(call);
  }
  Status Wait() override { return inner_.Wait(); }

 private:
  ExpertBackend& inner_;
  rpc::Loop* loop_;
  std::function<void()>* once_;
};

/// Experts that are away for as many calls as they are told.
class AwayExperts final : public ExpertBackend {
 public:
  AwayExperts(ExpertBackend& inner, std::atomic<int>* away) : inner_(inner), away_(away) {}
  Status Begin(const ExpertCall& call) override {
    if (*away_ == 0) return inner_.Begin(call);
    --*away_;
    return Unavailable("expert shard 0/1: no connection");
  }
  Status Wait() override { return inner_.Wait(); }

 private:
  ExpertBackend& inner_;
  std::atomic<int>* away_;
};

TEST(PrefillStepLoop, AJobBehindAnOutageGivesExpertsTimeToConnectAgain) {
  TestModel m;
  MetricsRegistry registry;
  PrefillMetrics metrics(registry);
  PrefillStepLoop step(m.model, 64, &metrics);
  std::atomic<int> away = 1 << 30, failed = 0, ended = 0;
  const auto submit = [&](uint64_t id) {
    auto encoder = std::make_shared<KvEncoder>(
        std::nullopt, 3, 0,
        [&](const JobEvent& event) {
          failed += event.kind == JobEvent::Kind::kFailed;
          ended += event.kind == JobEvent::Kind::kFirstToken;
        },
        KvEncoder::Windows{});
    step.Submit({id, m.State(m.Prompt(3, static_cast<int>(id))), *m.pools.Reserve(3), 0, nullptr}, encoder);
  };
  const Status started = step.Start(
      [&](rpc::Loop*) -> StatusOr<std::unique_ptr<ExpertBackend>> {
        return std::unique_ptr<ExpertBackend>(std::make_unique<AwayExperts>(m.experts, &away));
      },
      std::chrono::seconds(10));
  ASSERT_TRUE(started.ok()) << started;
  submit(1);
  while (failed == 0) std::this_thread::yield();
  away = 1;
  submit(2);
  while (failed < 2 && ended == 0) std::this_thread::yield();
  step.Stop();
  EXPECT_EQ(failed, 1) << "the second job had no try behind its first";
  EXPECT_EQ(ended, 1);
}

TEST(PrefillStepLoop, AJobThatComesInsideTheLastChunkOfAnotherStartsBehindIt) {
  TestModel m;
  MetricsRegistry registry;
  PrefillMetrics metrics(registry);
  PrefillStepLoop step(m.model, 64, &metrics, nullptr,
                       std::chrono::hours(1));  // it wakes for mail or not at all
  std::function<void()> once;  // on the step thread, inside a chunk
  std::atomic<int> ended = 0;
  const auto submit = [&](uint64_t id) {
    auto encoder = std::make_shared<KvEncoder>(
        std::nullopt, 3, 0,
        [&](const JobEvent& event) { ended += event.kind == JobEvent::Kind::kFirstToken; },
        KvEncoder::Windows{});
    step.Submit({id, m.State(m.Prompt(3, static_cast<int>(id))), *m.pools.Reserve(3), 0, nullptr}, encoder);
  };
  const Status started = step.Start(
      [&](rpc::Loop* loop) -> StatusOr<std::unique_ptr<ExpertBackend>> {
        return std::unique_ptr<ExpertBackend>(std::make_unique<PollingExperts>(m.experts, loop, &once));
      },
      std::chrono::seconds(10));
  ASSERT_TRUE(started.ok()) << started;
  once = [&] { submit(2); };
  submit(1);
  const TimePoint end = std::chrono::steady_clock::now() + kPatience;
  while (ended < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  EXPECT_EQ(ended, 2) << "it waited for the idle thread to wake by itself";
  step.Stop();
}

}  // namespace
}  // namespace cachalot::testing

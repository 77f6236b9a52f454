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

/// Experts that never poll, and tell of each layer before they compute it.
class ToldExperts final : public ExpertBackend {
 public:
  ToldExperts(ExpertBackend& inner, std::function<void(int)>* at_layer) : inner_(inner), at_layer_(at_layer) {}
  Status Begin(const ExpertCall& call) override {
    (*at_layer_)(call.layer);
    return inner_.Begin(call);
  }
  Status Wait() override { return inner_.Wait(); }

 private:
  ExpertBackend& inner_;
  std::function<void(int)>* at_layer_;
};

/// A step thread over ToldExperts; what it is told is of that thread.
class PrefillLayersTest : public ::testing::Test {
 protected:
  void Start() {
    at_layer_ = [this](int layer) {
      layers_.push_back(layer);
      if (layers_.size() == act_at_) std::exchange(act_, nullptr)();
    };
    const Status started = step_.Start(
        [this](rpc::Loop*) -> StatusOr<std::unique_ptr<ExpertBackend>> {
          return std::unique_ptr<ExpertBackend>(std::make_unique<ToldExperts>(m_.experts, &at_layer_));
        },
        std::chrono::seconds(10));
    ASSERT_TRUE(started.ok()) << started;
  }
  void Submit(uint64_t id) {
    auto encoder = std::make_shared<KvEncoder>(
        std::nullopt, 3, 0, [this](const JobEvent& event) { ended_ += event.kind == JobEvent::Kind::kFirstToken; },
        KvEncoder::Windows{});
    step_.Submit({id, m_.State(m_.Prompt(3, static_cast<int>(id))), *m_.pools.Reserve(3), 0, nullptr}, encoder);
  }
  /// Ends the step thread when so many jobs have their first token.
  void StopBehind(int jobs) {
    const TimePoint end = std::chrono::steady_clock::now() + kPatience;
    while (ended_ < jobs && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    step_.Stop();
    EXPECT_EQ(ended_, jobs);
    EXPECT_EQ(m_.pools.used_blocks(), 0);
  }
  /// Of so many whole chunks, behind `first`.
  std::vector<int> Layers(std::vector<int> first, int chunks) const {
    for (int chunk = 0; chunk < chunks; ++chunk)
      for (int layer = 0; layer < m_.weights->config.num_hidden_layers; ++layer) first.push_back(layer);
    return first;
  }

  TestModel m_;
  MetricsRegistry registry_;
  PrefillMetrics metrics_{registry_};
  std::function<void(int)> at_layer_;
  size_t act_at_ = 0;  // behind so many layers in all comes `act_`
  std::function<void()> act_;
  std::vector<int> layers_;
  std::atomic<int> ended_ = 0;
  PrefillStepLoop step_{m_.model, 64, &metrics_};
};

TEST_F(PrefillLayersTest, AChunkThatNobodyWaitsForEndsAtItsNextLayer) {
  act_at_ = 2;  // in layer 1 of the first chunk
  act_ = [this] {
    step_.Cancel(1);
    Submit(2);
  };
  Start();
  Submit(1);
  StopBehind(1);
  EXPECT_EQ(layers_, Layers({0, 1}, 1));
}

TEST_F(PrefillLayersTest, AChunkThatAnotherWaitsForGoesOn) {
  const auto layers = static_cast<size_t>(m_.weights->config.num_hidden_layers);
  act_at_ = 1;  // both come inside the chunk of job 1 and share the next
  act_ = [this, layers] {
    Submit(2);
    Submit(3);
    act_at_ = layers + 2;
    act_ = [this] { step_.Cancel(2); };
  };
  Start();
  Submit(1);
  StopBehind(3);  // job 2, too, is done when its cancel is taken
  EXPECT_EQ(layers_, Layers({}, 2));
}

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

// Experts that answer, but slowly: a step of many layers, none of which is late.

#include <gtest/gtest.h>

#include <condition_variable>
#include <future>
#include <mutex>

#include "tests/decode_worker/service_harness.h"

namespace cachalot {
namespace {

using std::chrono::milliseconds;
using testing::Eventually;

/// Every layer takes `pace` of `clock`; each step is held in its first layer while the gate is shut.
class GatedExperts final : public ExpertBackend {
 public:
  GatedExperts(std::unique_ptr<ExpertBackend> inner, testing::SharedClock* clock)
      : inner_(std::move(inner)), clock_(clock) {}

  Status Begin(const ExpertCall& call) override {
    layer_ = call.layer;
    return inner_->Begin(call);
  }
  Status Wait() override {
    std::unique_lock lock(mutex_);
    ++layers_;
    if (layer_ == 0) {
      ++steps_;
      changed_.wait_for(lock, testing::kPatience, [this] { return open_ || passes_ > 0; });
      if (!open_) --passes_;
    }
    clock_->Advance(pace_);
    lock.unlock();
    return inner_->Wait();
  }

  /// Lets one step through, or all from now on.
  void Pass() {
    Change([this] { ++passes_; });
  }
  void Open() {
    Change([this] { open_ = true; });
  }
  void SetPace(Duration pace) {
    Change([this, pace] { pace_ = pace; });
  }
  /// That have begun, steps done again included.
  int steps() { return Read(steps_); }
  int layers() { return Read(layers_); }

 private:
  template <typename F>
  void Change(F change) {
    std::lock_guard lock(mutex_);
    change();
    changed_.notify_all();
  }
  int Read(const int& figure) {
    std::lock_guard lock(mutex_);
    return figure;
  }

  const std::unique_ptr<ExpertBackend> inner_;
  testing::SharedClock* const clock_;
  int layer_ = 0;  // step thread
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int passes_ = 0, steps_ = 0, layers_ = 0;
  Duration pace_{};
};

class SlowExpertsTest : public testing::ServiceTest {
 protected:
  /// With the gate shut.
  void StartGated() {
    options_.leases.heartbeat_timeout = std::chrono::hours(24);
    Start([this](rpc::Loop* loop) -> StatusOr<std::unique_ptr<ExpertBackend>> {
      ASSIGN_OR_RETURN(auto local, server_->LocalBackend()(loop));
      auto experts = std::make_unique<GatedExperts>(std::move(local), &clock_);
      experts_ = experts.get();
      return experts;
    });
  }
  GatedExperts* experts_ = nullptr;
};

TEST_F(SlowExpertsTest, AClientThatLeavesFreesItsKvInTheMiddleOfAStep) {
  StartGated();
  const auto router = GreetedRouter();
  Run(*router, 1, engine_.OracleState());
  ASSERT_TRUE(Eventually([&] { return experts_->steps() == 1; }));
  Run(*router, 2, engine_.OtherState(9, 40, 7));
  experts_->Pass();
  ASSERT_TRUE(Eventually([&] { return experts_->steps() == 2; }));  // with both of them
  EXPECT_EQ(Describe().load().running_sequences(), 2);
  const int64_t used = server_->pools().used_blocks();
  const int layers = experts_->layers();

  EXPECT_TRUE(router->Close(2));
  ASSERT_TRUE(Eventually([&] { return Describe().load().leases() == 1; }));
  EXPECT_EQ(server_->pools().used_blocks(), used) << "the step runs with it";
  experts_->SetPace(options_.decode.step_limit);
  experts_->Pass();
  ASSERT_TRUE(Eventually([&] { return experts_->steps() == 3; }));
  EXPECT_EQ(experts_->layers(), layers + 1) << "the step was not interrupted behind its first layer";
  EXPECT_EQ(Describe().load().running_sequences(), 1);
  EXPECT_LT(server_->pools().used_blocks(), used);
  experts_->SetPace({});
  experts_->Open();
  EXPECT_TRUE(router->ReadTokens(1, engine_.oracle().greedy_tokens.size()));
  EXPECT_EQ(router->tokens[1], engine_.oracle().greedy_tokens);
  EXPECT_TRUE(AllFree());
}

TEST_F(SlowExpertsTest, AStepThreadThatHangsIsNotAlive) {
  options_.hang_limit = milliseconds(300);  // above what an idle one sleeps
  StartGated();
  const auto router = GreetedRouter();
  Run(*router, 1, engine_.OracleState());
  EXPECT_TRUE(Eventually([&] { return !Healthy("liveness"); }));
  experts_->Open();
  EXPECT_TRUE(Eventually([&] { return Healthy("liveness"); }));
  EXPECT_TRUE(router->ReadTokens(1, engine_.oracle().greedy_tokens.size()));
  EXPECT_EQ(router->tokens[1], engine_.oracle().greedy_tokens);
}

/// Tells the step thread in its first layer to end, and goes on when that is known.
class EndingExperts final : public ExpertBackend {
 public:
  EndingExperts(ExpertBackend& inner, rpc::Loop* loop, std::future<void> joined, std::function<void()> end, int* layers)
      : inner_(inner), loop_(loop), joined_(std::move(joined)), end_(std::move(end)), layers_(layers) {}
  Status Begin(const ExpertCall& call) override { return inner_.Begin(call); }
  Status Wait() override {
    if (++*layers_ == 1) {
      joined_.wait_for(testing::kPatience);
      while (loop_->PollOnce(TimePoint::min()) == rpc::Loop::Poll::kProgress) {
      }
      end_();
      EXPECT_EQ(loop_->PollOnce(loop_->Now() + testing::kPatience), rpc::Loop::Poll::kProgress);
    }
    return inner_.Wait();
  }

 private:
  ExpertBackend& inner_;
  rpc::Loop* const loop_;
  std::future<void> joined_;  // nothing else is on its way to the loop then
  const std::function<void()> end_;
  int* const layers_;
};

TEST(StepLoop, EndsBehindALayer) {
  testing::TinyEngine engine;
  const SteadyClock clock;
  const auto state = engine.OracleState();
  SequenceKv kv = *engine.pools().Reserve(state.MaxTokens());
  const int32_t first = engine.Prefill(state, kv);
  int layers = 0;
  StepLoop step(engine.model(), clock, {});
  std::promise<void> joined, ending;
  std::future<void> ended;
  const Status started = step.Start(
      [&](rpc::Loop* loop) -> StatusOr<std::unique_ptr<ExpertBackend>> {
        const auto end = [&] {
          ended = std::async(std::launch::async, [&] { step.Stop(); });
          ending.set_value();
        };
        return std::make_unique<EndingExperts>(engine.experts(), loop, joined.get_future(), end, &layers);
      },
      [](std::vector<TokenOut>, StepFigures) {}, testing::kPatience);
  ASSERT_TRUE(started.ok()) << started;
  step.Join(1, state, std::move(kv), first, /*preemptible=*/false);
  joined.set_value();
  ASSERT_EQ(ending.get_future().wait_for(testing::kPatience), std::future_status::ready);
  ASSERT_EQ(ended.wait_for(testing::kPatience), std::future_status::ready);
  EXPECT_EQ(layers, 1);
  EXPECT_EQ(engine.pools().used_blocks(), 0);
}

/// Notes in every layer when the step thread last showed that it is alive.
class NotingExperts final : public ExpertBackend {
 public:
  NotingExperts(ExpertBackend& inner, const StepLoop& step, std::vector<TimePoint>* beats)
      : inner_(inner), step_(step), beats_(beats) {}
  Status Begin(const ExpertCall& call) override { return inner_.Begin(call); }
  Status Wait() override {
    beats_->push_back(step_.alive());
    while (std::chrono::steady_clock::now() <= beats_->back()) {
    }
    return inner_.Wait();
  }

 private:
  ExpertBackend& inner_;
  const StepLoop& step_;
  std::vector<TimePoint>* const beats_;
};

TEST(StepLoop, ShowsInEveryLayerThatItIsAlive) {
  testing::TinyEngine engine;
  const SteadyClock clock;
  auto state = engine.OracleState();
  state.params.max_tokens = 2;  // the prefill's, and that of one step
  SequenceKv kv = *engine.pools().Reserve(state.MaxTokens());
  const int32_t first = engine.Prefill(state, kv);
  std::vector<TimePoint> beats;
  std::promise<std::vector<TokenOut>> stepped;
  StepLoop step(engine.model(), clock, {});
  const Status started = step.Start(
      [&](rpc::Loop*) -> StatusOr<std::unique_ptr<ExpertBackend>> {
        return std::make_unique<NotingExperts>(engine.experts(), step, &beats);
      },
      [&](std::vector<TokenOut> tokens, StepFigures) { stepped.set_value(std::move(tokens)); },
      testing::kPatience);
  ASSERT_TRUE(started.ok()) << started;
  step.Join(1, state, std::move(kv), first, /*preemptible=*/false);
  auto tokens = stepped.get_future();
  ASSERT_EQ(tokens.wait_for(testing::kPatience), std::future_status::ready);
  EXPECT_EQ(tokens.get()[0].token, engine.oracle().greedy_tokens[1]);
  step.Stop();
  ASSERT_EQ(beats.size(), static_cast<size_t>(engine.model().config().num_hidden_layers));
  for (size_t i = 1; i < beats.size(); ++i) EXPECT_GT(beats[i], beats[i - 1]) << "layer " << i;
}

}  // namespace
}  // namespace cachalot

// Batching and refusals of the expert step.

#include "expert_service/expert_step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "expert_service/expert_store.h"
#include "tests/expert_service/tiny_experts.h"

namespace cachalot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::StepCluster;
using testing::TinyCall;
using testing::TinyExperts;

struct Recorder final : ExpertStepObserver {
  void OnCallers(int64_t connected) override { callers = connected; }
  void OnBatch(int64_t calls, int64_t rows) override { batches.push_back({calls, rows}); }
  void OnReply(Duration) override { ++replies; }
  void OnError(const Status& error) override { errors.push_back(StatusMessage(error)); }
  int64_t callers = 0, replies = 0;
  std::vector<std::pair<int64_t, int64_t>> batches;
  std::vector<std::string> errors;
};

/// One shard with everything, driven by hand.
class Step : public ::testing::Test {
 protected:
  Step() : cluster_(experts_.table(), TinyExperts::kHidden, TinyExperts::kLimit, 1) {
    cluster_.observer = &recorder_;
    Restart();
  }
  void Restart() { cluster_.Start(0); }
  ExpertStep& step() { return cluster_.step(0); }

  std::unique_ptr<FrameChannel> Connect() { return *cluster_.Connect(0); }
  std::vector<std::byte> CallFrame(TinyCall& call, uint64_t id = 1) {
    PlanSplitter splitter;
    const ShardPlan& part = splitter.Split(call.plan, testing::kGroups, 1)[0];
    return EncodeExpertCall(id, call.layer, part.assignments, part.rows, call.plan.slots(), call.x.data(),
                            TinyExperts::kHidden);
  }
  void Send(FrameChannel& channel, std::vector<std::byte> bytes) {
    ASSERT_TRUE(channel.Post({std::move(bytes)}, TimePoint::max()).ok());
  }
  std::vector<float> Want(TinyCall& call) {
    ThreadPool threads(1);
    LocalExperts local(experts_.table(), kernels::RefKernels(), threads, TinyExperts::kLimit);
    return *call.Run(local);
  }
  /// The partials of the next reply, or the text of an error.
  static std::vector<float> Partials(FrameChannel& channel) {
    const auto frame = channel.Poll();
    EXPECT_TRUE(frame);
    if (!frame) return {};
    const auto view = ParseExpertFrame(frame->bytes);
    EXPECT_TRUE(view.ok() && view->header.kind == ExpertFrameKind::kReply) << view.status();
    std::vector<float> values(view->body.size() / sizeof(float));
    std::memcpy(values.data(), view->body.data(), view->body.size());
    return values;
  }
  static Status Refusal(FrameChannel& channel, uint64_t* call = nullptr) {
    const auto frame = channel.Poll();
    if (!frame) return OkStatus();
    const auto view = ParseExpertFrame(frame->bytes);
    EXPECT_TRUE(view.ok() && view->header.kind == ExpertFrameKind::kError) << view.status();
    if (call) *call = view->header.call;
    return DecodeExpertError(*view);
  }

  const TinyExperts experts_;
  StepCluster cluster_;
  Recorder recorder_;
};

TEST_F(Step, TwoCallersOfOneLayerAreOneBatchAndGetTheBitsThatEachGetsAlone) {
  auto a = Connect(), b = Connect();
  TinyCall call_a(3, 1, 1), call_b(5, 1, 2);
  const auto want_a = Want(call_a), want_b = Want(call_b);
  Send(*a, CallFrame(call_a));
  Send(*b, CallFrame(call_b));
  step().Collect();
  EXPECT_TRUE(step().RunBatch());
  EXPECT_FALSE(step().RunBatch());
  EXPECT_THAT(recorder_.batches, ElementsAre(std::pair(2, 8)));
  EXPECT_EQ(want_a, Partials(*a));
  EXPECT_EQ(want_b, Partials(*b));
  EXPECT_EQ(recorder_.replies, 2);
}

TEST_F(Step, TwoBackEndsInLockStepGetTheBitsThatEachGetsAlone) {
  const auto a = cluster_.NewBackend(), b = cluster_.NewBackend();
  for (int64_t rows : {1, 4, 9}) {
    TinyCall call_a(rows, 0, rows), call_b(rows + 1, 0, rows + 50);
    const auto want_a = Want(call_a), want_b = Want(call_b);
    ASSERT_TRUE(a->Begin(call_a.call()).ok());
    ASSERT_TRUE(b->Begin(call_b.call()).ok());
    ASSERT_TRUE(a->Wait().ok());
    ASSERT_TRUE(b->Wait().ok());
    EXPECT_EQ(want_a, call_a.partials);
    EXPECT_EQ(want_b, call_b.partials);
    EXPECT_EQ(recorder_.batches.back(), std::pair(int64_t{2}, 2 * rows + 1));
  }
}

TEST_F(Step, CallsOfTwoLayersAreTwoBatchesOldestFirst) {
  auto a = Connect(), b = Connect(), c = Connect();
  TinyCall first(1, 1, 1), second(2, 0, 2), third(4, 1, 3);
  Send(*a, CallFrame(first));
  Send(*b, CallFrame(second));
  Send(*c, CallFrame(third));
  step().Collect();
  while (step().RunBatch()) {
  }
  EXPECT_THAT(recorder_.batches, ElementsAre(std::pair(2, 5), std::pair(1, 2)));
  EXPECT_EQ(Want(second), Partials(*b));
}

TEST_F(Step, WaitsForOtherCallersOnlyAsLongAsItMay) {
  cluster_.options.batch_wait = std::chrono::microseconds(80);
  Restart();
  auto a = Connect();
  TinyCall call(1, 0, 1);
  EXPECT_FALSE(step().Due());
  Send(*a, CallFrame(call));
  step().Collect();
  EXPECT_EQ(step().Due(), cluster_.clock.Now()) << "a single caller waits for nobody";
  step().RunBatch();
  auto b = Connect();
  Send(*a, CallFrame(call));
  step().Collect();
  EXPECT_EQ(step().Due(), cluster_.clock.Now()) << "one that has never called is not waited for";
  Send(*b, CallFrame(call));
  step().Collect();
  while (step().RunBatch()) {
  }
  cluster_.clock.Advance(std::chrono::milliseconds(1));
  Send(*a, CallFrame(call));
  step().Collect();
  EXPECT_EQ(step().Due(), cluster_.clock.Now() + std::chrono::microseconds(80));
  cluster_.clock.Advance(std::chrono::microseconds(30));
  EXPECT_EQ(step().Due(), cluster_.clock.Now() + std::chrono::microseconds(50))
      << "the oldest call's wait counts";
  Send(*b, CallFrame(call));
  step().Collect();
  EXPECT_LE(*step().Due(), cluster_.clock.Now()) << "everybody is here";
  step().RunBatch();
  cluster_.clock.Advance(std::chrono::microseconds(1001));
  Send(*a, CallFrame(call));
  step().Collect();
  EXPECT_EQ(step().Due(), cluster_.clock.Now()) << "an idle caller is not waited for";
}

TEST_F(Step, ABatchHasAnEndAndSoHasALine) {
  cluster_.options.max_batch_rows = 5;
  cluster_.options.max_waiting_calls = 2;
  Restart();
  auto a = Connect(), b = Connect();
  TinyCall three(3, 0, 1);
  for (int i = 0; i < 4; ++i) Send(*a, CallFrame(three, i));
  Send(*b, CallFrame(three));
  step().Collect();
  while (step().RunBatch()) {
  }
  EXPECT_EQ(recorder_.batches.size(), 3u) << "two of a and one of b, none fits beside another";
  step().Collect();
  while (step().RunBatch()) {
  }
  EXPECT_EQ(recorder_.batches.size(), 5u);
  cluster_.options.max_batch_rows = 1;
  Restart();
  auto c = Connect();
  Send(*c, CallFrame(three));
  step().Collect();
  EXPECT_TRUE(step().RunBatch()) << "a call is never cut, and never left behind";
}

TEST_F(Step, MalformedCallsAreAnsweredWithAnErrorAndHurtNobody) {
  auto bad = Connect(), good = Connect();
  TinyCall call(3, 1, 1), unknown_layer(1, 2, 1);
  const auto frame = CallFrame(call, 41);
  uint64_t id = 7;

  auto damaged = frame;
  damaged[200] ^= std::byte{4};
  Send(*bad, damaged);
  step().Collect();
  Status refusal = Refusal(*bad, &id);
  EXPECT_EQ(refusal.code(), StatusCode::kDataLoss);
  EXPECT_EQ(id, 0u) << "nothing in a damaged frame is to be believed";

  for (size_t size : {0, 3, 47, 48, 100}) {
    Send(*bad, std::vector<std::byte>(frame.begin(), frame.begin() + size));
    step().Collect();
    EXPECT_EQ(Refusal(*bad).code(), StatusCode::kDataLoss) << size;
  }

  Send(*bad, CallFrame(unknown_layer, 42));
  step().Collect();
  refusal = Refusal(*bad, &id);
  EXPECT_EQ(refusal.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(StatusMessage(refusal), HasSubstr("layer 2"));
  EXPECT_EQ(id, 42u);

  const std::vector<float> x(8);
  const std::vector<int32_t> rows = {0};
  const std::vector<ExpertAssignment> outside = {{0, 0, TinyExperts::kExperts, 1.f}}, fine = {{0, 0, 1, 1.f}};
  Send(*bad, EncodeExpertCall(43, 0, fine, rows, 1, x.data(), 8));
  step().Collect();
  EXPECT_THAT(StatusMessage(Refusal(*bad)), HasSubstr("rows of 8 values, wanted 64"));
  Send(*bad, EncodeExpertCall(44, 0, outside, rows, 1, call.x.data(), TinyExperts::kHidden));
  step().Collect();
  EXPECT_THAT(StatusMessage(Refusal(*bad)), HasSubstr("expert 16 is not in this shard's [0, 16)"));
  TinyCall many(1025, 0, 1);
  Send(*bad, CallFrame(many));
  step().Collect();
  EXPECT_THAT(StatusMessage(Refusal(*bad)), HasSubstr("1025 rows in one call, at most 1024"));
  Send(*bad, EncodeExpertError(45, 0, Internal("not a call")));
  step().Collect();
  EXPECT_THAT(StatusMessage(Refusal(*bad)), HasSubstr("not a call"));

  EXPECT_EQ(recorder_.errors.size(), 11u);
  for (FrameChannel* channel : {good.get(), bad.get()}) {
    Send(*channel, frame);
    step().Collect();
    step().RunBatch();
    EXPECT_EQ(Want(call), Partials(*channel));
  }
}

TEST_F(Step, ACallerThatGoesTakesItsCallsAlong) {
  auto a = Connect(), b = Connect();
  EXPECT_EQ(recorder_.callers, 2);
  TinyCall call(2, 0, 1);
  Send(*a, CallFrame(call));
  Send(*b, CallFrame(call));
  step().Collect();
  a.reset();
  step().Collect();
  EXPECT_EQ(recorder_.callers, 1);
  EXPECT_TRUE(step().RunBatch());
  EXPECT_FALSE(step().RunBatch());
  EXPECT_EQ(Want(call), Partials(*b));
  EXPECT_THAT(recorder_.batches, ElementsAre(std::pair(1, 2)));
}

TEST(ShardSpec, ReadsShardOfShards) {
  EXPECT_EQ(ShardSpec::Parse("3/8")->shard, 3);
  EXPECT_EQ(ShardSpec::Parse("3/8")->shards, 8);
  EXPECT_TRUE(ShardSpec::Parse("0/1").ok());
  for (const char* text :
       {"", "1", "1/", "/2", "2/2", "-1/2", "0/3", "0/16", "0/0", "a/2", "0/2x", "0 /2", "0/-2"})
    EXPECT_EQ(ShardSpec::Parse(text).status().code(), StatusCode::kInvalidArgument) << text;
}

TEST(ExpertStore, MapsItsShardAndNothingElse) {
  const std::string directory = CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny";
  const auto store = *ExpertStore::Load(directory, {1, 4});
  const int experts = store->config().n_routed_experts;
  EXPECT_EQ(store->expert_begin(), experts / 4);
  EXPECT_EQ(store->expert_end(), experts / 2);
  for (int l = 0; l < store->layers(); ++l)
    for (int e = 0; e < experts; ++e)
      EXPECT_EQ(store->layer(l)[e].w1.present(), e >= store->expert_begin() && e < store->expert_end());
  EXPECT_EQ(ExpertStore::Load("/nonexistent", {0, 1}).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace cachalot

// The flows of `cachalot serve` behind the router's worker interfaces; the test is the router.

#include "client/embedded/embedded_workers.h"

#include <gtest/gtest.h>

#include <functional>

#include "client/embedded/run.h"
#include "tests/support/patience.h"

namespace cachalot {
namespace {

using Kind = FlowEvent::Kind;

class EmbeddedRowsTest : public ::testing::Test {
 protected:
  struct Request {
    std::shared_ptr<FlowQueue> queue;
    std::unique_ptr<DecodeCall> lease;
    std::unique_ptr<PrefillCall> prefill;
  };
  SequenceState State(int length) {
    SequenceState state;
    for (int i = 0; i < length; ++i) state.prompt.push_back((length + i * 7) % vocab_);
    state.params.sampling.temperature = 0;
    state.params.max_tokens = 1;
    state.params.ignore_eos = true;
    return state;
  }
  /// The events of a request arrive while `done` is asked. False after kPatience.
  bool Eventually(const std::function<bool()>& done) {
    const TimePoint end = loop_.Now() + testing::kPatience;
    while (!done()) {
      if (loop_.Now() > end) return false;
      loop_.PollOnce(end);
    }
    return true;
  }
  Request Start(const SequenceState& state) {
    Request request{std::make_shared<FlowQueue>(&loop_), nullptr, nullptr};
    request.lease = decode_->Open(state, request.queue);
    request.prefill = prefill_->Start(state, *request.lease, {}, request.queue);
    return request;
  }
  /// A request that is sent now and is over: what was sent before has gone as far as it does by itself.
  void RunAnother(int length) {
    const Request request = Start(State(length));
    EXPECT_TRUE(Eventually([&] {
      while (const auto event = request.queue->TryPop())
        if (event->kind == Kind::kFirstToken) return true;
      return false;
    }));
  }

  std::unique_ptr<EmbeddedModel> embedded_ =
      *EmbeddedModel::Load({.model = CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny"});
  const int vocab_ = embedded_->config().vocab_size;
  rpc::Loop loop_{{.name = "test"}};
  std::unique_ptr<EmbeddedEngine> engine_;
  std::unique_ptr<DecodeWorker> decode_;
  std::unique_ptr<PrefillWorker> prefill_;
};

TEST_F(EmbeddedRowsTest, ComeInMessagesThatEveryPeerTakesAndWaitForTheirReader) {
  constexpr int kTokens = 4000;  // 8 MB of rows
  SequenceState state = State(kTokens);
  state.want_logits = true;
  std::vector<float> wanted;
  RunOptions run;
  run.on_logits = [&](std::span<const float> rows) { wanted.insert(wanted.end(), rows.begin(), rows.end()); };
  const Status ran = RunEmbedded(*embedded_, state, run);
  ASSERT_TRUE(ran.ok()) << ran;
  ASSERT_EQ(wanted.size(), static_cast<size_t>(kTokens) * vocab_);

  engine_ = std::make_unique<EmbeddedEngine>(embedded_.get(), &loop_, 4096);
  decode_ = engine_->MakeDecodeWorker();
  prefill_ = engine_->MakePrefillWorker();
  const Request request = Start(state);
  RunAnother(5);
  std::vector<FlowEvent> held;
  size_t unread = 0;
  while (auto event = request.queue->TryPop()) {
    unread += event->logits.size() * sizeof(float);
    held.push_back(std::move(*event));
  }
  EXPECT_GT(unread, 0u);
  EXPECT_LE(unread, size_t{4} << 20);
  RunAnother(6);
  EXPECT_EQ(request.queue->size(), 0u) << "more of the rows, while those before had not been taken";

  std::vector<float> got;
  bool over = false;
  const auto take = [&](const FlowEvent& event) {
    EXPECT_TRUE(event.error.ok()) << event.error;
    over |= event.kind == Kind::kFirstToken || !event.error.ok();
    if (event.kind != Kind::kPromptLogits) return;
    EXPECT_EQ(event.first_row * vocab_, static_cast<int64_t>(got.size()));
    EXPECT_LE(event.logits.size() * sizeof(float), size_t{2} << 20);
    got.insert(got.end(), event.logits.begin(), event.logits.end());
  };
  for (const FlowEvent& event : held) take(event);
  EXPECT_FALSE(over);
  held.clear();
  EXPECT_TRUE(Eventually([&] {
    while (const auto event = request.queue->TryPop()) take(*event);
    return over;
  }));
  EXPECT_TRUE(got == wanted);
}

}  // namespace
}  // namespace cachalot

// The step thread's half of the hand-off: frames, their order and their bounds.

#include <gtest/gtest.h>

#include <deque>
#include <numeric>

#include "prefill_worker/kv_publisher.h"
#include "tests/prefill_worker/test_model.h"

namespace cachalot {
namespace {

using testing::HandOffBytes;
using testing::SameBits;
using testing::TestModel;
using Kind = JobEvent::Kind;

class KvEncoderTest : public ::testing::Test {
 protected:
  std::shared_ptr<KvEncoder> Submit(PrefillFlow& flow, SequenceState state, std::optional<PushTarget> target,
                                    int64_t window) {
    cached_ = 0;
    const auto tokens = static_cast<int64_t>(state.Context().size());
    const auto index = static_cast<int64_t>(state.emitted.size());
    auto encoder = std::make_shared<KvEncoder>(
        target, tokens, index, [this](JobEvent event) { Hear(std::move(event)); },
        KvEncoder::Windows{.frame_bytes = window, .row_bytes = row_window_});
    flow.Submit({1, std::move(state), *m_.pools.Reserve(tokens), 0, encoder});
    return encoder;
  }
  void Hear(JobEvent event) {
    kinds_.push_back(event.kind);
    if (event.kind == Kind::kFirstToken) {
      token_ = event.token;
      cached_ = event.cached;
    }
    for (PushFrame& frame : event.frames) frames_.push_back(std::move(frame));
    logits_.insert(logits_.end(), event.logits.begin(), event.logits.end());
    if (event.kind == Kind::kPromptLogprobs)
      logprobs_.insert(logprobs_.end(), event.logprobs.begin(), event.logprobs.end());
    if (event.row_bytes > 0) unread_.push_back(event.row_bytes);
  }
  /// Takes frames that came since the last time, as the decode worker would.
  void Deliver(KvReceiver& receiver) {
    for (; delivered_ < frames_.size(); ++delivered_) {
      EXPECT_LE(frames_[delivered_].bytes->size(), static_cast<size_t>(KvEncoder::kMaxFrameBytes));
      const auto frame = ParseKvFrame(*frames_[delivered_].bytes);
      ASSERT_TRUE(frame.ok()) << frame.status();
      EXPECT_EQ(frame->header.lease, 11u);
      EXPECT_EQ(frame->header.epoch, 12u);
      EXPECT_EQ(frame->header.attempt, 13u);
      EXPECT_EQ(frame->header.kind == KvFrameKind::kCommit, frames_[delivered_].commit);
      if (frame->header.kind == KvFrameKind::kRows) {
        ASSERT_TRUE(receiver.Place(*frame).ok());
      } else {
        commit_ = *DecodeCommit(frame->payload);
        const Status complete = receiver.Commit(*commit_);
        EXPECT_TRUE(complete.ok()) << complete;
      }
    }
  }

  TestModel m_;
  std::vector<Kind> kinds_;
  std::vector<PushFrame> frames_;
  size_t delivered_ = 0;
  std::optional<KvCommit> commit_;
  int32_t token_ = -1;
  int64_t cached_ = 0;
  int64_t row_window_ = 8 << 20;
  std::vector<float> logits_;
  std::vector<TokenLogprobs> logprobs_;
  std::deque<int64_t> unread_;  // of events with rows
  const PushTarget target_{11, 12, 13};
};

TEST_F(KvEncoderTest, RowsOfAChunkLeaveWithItAndStateWithTheLast) {
  PrefillFlow flow(m_.model, m_.experts, 128);
  const auto encoder = Submit(flow, m_.State(m_.oracle.input_ids), target_, 8 << 20);
  flow.Step();
  EXPECT_EQ(frames_.size(), m_.pools.layout().AppendedRows(0, 128).size());
  flow.Step();
  EXPECT_EQ(frames_.size(),
            m_.pools.layout().AppendedRows(0, 128).size() + m_.pools.layout().AppendedRows(128, 256).size());
  EXPECT_FALSE(encoder->done());
  flow.Step();
  EXPECT_TRUE(encoder->done());
  EXPECT_TRUE(frames_.back().commit);
  EXPECT_EQ(m_.pools.used_blocks(), 0);
  const std::vector<Kind> wanted = {Kind::kChunk, Kind::kFrames,     Kind::kChunk, Kind::kFrames,
                                    Kind::kChunk, Kind::kFirstToken, Kind::kFrames};
  EXPECT_EQ(kinds_, wanted);  // the first token does not wait for the last rows
}

TEST_F(KvEncoderTest, AnyWindowHandsOverTheSameBits) {
  const auto prompt = m_.Prompt(900, 1);
  std::vector<float> whole;
  for (const int64_t window : {int64_t{1}, int64_t{10000}, int64_t{8} << 20}) {
    frames_.clear();
    delivered_ = 0;
    PrefillFlow flow(m_.model, m_.experts, 100);
    const auto encoder = Submit(flow, m_.State(prompt), target_, window);
    SequenceKv received = *m_.pools.Reserve(1000);
    KvReceiver receiver(&received, 1000);
    while (flow.Step()) {
    }
    size_t released = 0;
    int64_t most = 0;
    while (released < frames_.size()) {
      int64_t bytes = 0;
      for (; released < frames_.size(); ++released)
        bytes += static_cast<int64_t>(frames_[released].bytes->size());
      most = std::max(most, bytes);
      ASSERT_NO_FATAL_FAILURE(Deliver(receiver));
      encoder->Release(bytes);
    }
    EXPECT_TRUE(encoder->done());
    EXPECT_LE(most, window + KvEncoder::kMaxFrameBytes);
    ASSERT_TRUE(commit_.has_value());
    EXPECT_EQ(commit_->tokens, 900);
    EXPECT_EQ(commit_->first_token, token_);
    if (whole.empty()) whole = HandOffBytes(received, 900);
    EXPECT_TRUE(SameBits(HandOffBytes(received, 900), whole)) << "window " << window;
    received.Release();
    EXPECT_EQ(m_.pools.used_blocks(), 0);
  }
}

TEST_F(KvEncoderTest, RowsOfACachedPrefixAreHandedOverToo) {
  PrefixStore store(m_.pools.layout(), {.salt = "s"});
  std::vector<float> cold;
  for (const bool warm : {false, true}) {
    frames_.clear();
    delivered_ = 0;
    PrefillFlow flow(m_.model, m_.experts, 256, &store);
    const auto encoder = Submit(flow, m_.State(m_.Prompt(700, 1)), target_, 64 << 20);
    while (flow.Step()) {
    }
    SequenceKv received = *m_.pools.Reserve(700);
    KvReceiver receiver(&received, 700);
    ASSERT_NO_FATAL_FAILURE(Deliver(receiver));
    ASSERT_TRUE(encoder->done() && commit_);
    EXPECT_EQ(cached_, warm ? 640 : 0);
    if (!warm) cold = HandOffBytes(received, 700);
    EXPECT_TRUE(SameBits(HandOffBytes(received, 700), cold));
  }
}

TEST_F(KvEncoderTest, NoFrameIsLargerThanOneMiB) {
  // 40,000 tokens: 10,000 compressed rows of 128 bytes a layer.
  BlockPools pools(m_.pools.layout(), 1, 40000);
  SequenceKv kv = *pools.Reserve(40000);
  kv.SetTokens(40000);
  KvEncoder encoder(target_, 40000, 5, [this](JobEvent event) { Hear(std::move(event)); },
                    {.frame_bytes = 64 << 20});
  encoder.OnChunk(kv, 0, 40000, {});
  encoder.OnFirstToken({3, FinishReason::kNone, {}}, std::move(kv));
  BlockPools other(m_.pools.layout(), 1, 40000);
  SequenceKv received = *other.Reserve(40000);
  KvReceiver receiver(&received, 40000);
  ASSERT_NO_FATAL_FAILURE(Deliver(receiver));
  ASSERT_TRUE(commit_.has_value());
  EXPECT_EQ(commit_->first_index, 5);
  EXPECT_GT(frames_.size(), HandOffRows(m_.pools.layout(), 40000).size());
  received.Release();
}

TEST_F(KvEncoderTest, RowsThatNobodyReadsStayInTheirWindow) {
  SequenceState rows = m_.State(m_.Prompt(1300, 1));
  rows.want_logits = true;
  rows.params.prompt_logprobs = 3;
  const int64_t logits_bytes = m_.weights->config.vocab_size * int64_t{sizeof(float)};
  std::vector<float> logits;
  std::vector<TokenLogprobs> logprobs;
  for (const int64_t window : {int64_t{64} << 20, 100 * logits_bytes, 3 * logits_bytes, int64_t{1}}) {
    SCOPED_TRACE(window);
    row_window_ = window;
    logits_.clear();
    logprobs_.clear();
    unread_.clear();
    PrefillFlow flow(m_.model, m_.experts, 2000);
    const auto encoder = Submit(flow, rows, std::nullopt, 8 << 20);
    int stalls = 0;
    while (!encoder->done()) {
      if (!flow.Step()) {
        ASSERT_FALSE(unread_.empty()) << "it waits for nobody";
        ++stalls;
        encoder->ReleaseRows(unread_.front());
        unread_.pop_front();
      }
      // One row, where the window is too small for any.
      const int64_t row =
          logits_bytes + static_cast<int64_t>(sizeof(TokenLogprobs) + 3 * sizeof(TokenLogprob));
      EXPECT_LE(std::accumulate(unread_.begin(), unread_.end(), int64_t{0}), std::max(window, row));
    }
    EXPECT_EQ(stalls > 0, window < int64_t{64} << 20);
    if (logits.empty()) logits = logits_, logprobs = logprobs_;
    EXPECT_EQ(logits.size(), 1300u * m_.weights->config.vocab_size);
    EXPECT_EQ(logprobs.size(), 1299u);
    EXPECT_TRUE(SameBits(logits_, logits));
    EXPECT_EQ(logprobs_, logprobs);
  }
}

TEST_F(KvEncoderTest, PushesNothingWithoutATargetOrAfterTheLastToken) {
  PrefillFlow flow(m_.model, m_.experts, 512);
  const auto untargeted = Submit(flow, m_.State(m_.oracle.input_ids), std::nullopt, 1 << 20);
  flow.Step();
  EXPECT_TRUE(untargeted->done());
  SequenceState stops = m_.State(m_.oracle.input_ids);
  stops.params.stop_token_ids = {m_.oracle.greedy_tokens[0]};
  const auto stopped = Submit(flow, stops, target_, 1 << 20);
  flow.Step();
  EXPECT_TRUE(stopped->done());
  EXPECT_TRUE(frames_.empty());
  EXPECT_EQ(m_.pools.used_blocks(), 0);
}

}  // namespace
}  // namespace cachalot

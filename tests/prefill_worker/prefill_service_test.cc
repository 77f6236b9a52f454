// The prefill worker over real gRPC: what a router and a decode worker see of it.

#include "common/rpc/error_map.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/prefill_worker/prefill_fixture.h"

namespace cachalot {
namespace {

using testing::Eventually;
using testing::FakeDecodeWorker;
using testing::HandOffBytes;
using ::testing::HasSubstr;
using testing::SameBits;

class PrefillServiceTest : public testing::PrefillFixture {
 protected:
  SequenceState OracleState() const { return m_.State(m_.oracle.input_ids); }
  /// What the call ends with when the decode worker behaves so.
  Status EndWith(Manner manner, std::optional<Status> verdict) {
    decode_.Behave(manner, std::move(verdict));
    const Status status = Call(OracleState())->Finish();
    EXPECT_TRUE(EventuallyNothingIsLeft());
    return status;
  }
};

TEST_F(PrefillServiceTest, TheDecodeWorkerGoesOnFromTheReceivedKv) {
  Serve();
  auto call = Call(OracleState());
  auto event = call->NextNews();
  ASSERT_TRUE(event && event->has_first_token());
  EXPECT_EQ(event->first_token().token(), m_.oracle.greedy_tokens[0]);
  EXPECT_EQ(event->first_token().finish(), v1::STEP_FINISH_NONE);
  event = call->NextNews();
  ASSERT_TRUE(event && event->has_committed());
  EXPECT_EQ(event->committed().tokens(), 300);
  EXPECT_GT(event->committed().bytes(), 10000);
  EXPECT_TRUE(call->Finish().ok());
  EXPECT_TRUE(EventuallyNothingIsLeft());
  EXPECT_EQ(Metric("cachalot_prefill_pushed_bytes_total"), event->committed().bytes());
  EXPECT_TRUE(Eventually([&] { return Metric("cachalot_prefill_prompt_tokens_total") == 300; }));

  const auto commit = decode_.commit();
  ASSERT_TRUE(commit.has_value());
  EXPECT_EQ(commit->first_index, 0);
  std::vector<int32_t> tokens = {commit->first_token};
  server_.reset();  // the model is this thread's now
  while (tokens.size() < m_.oracle.greedy_tokens.size()) {
    const Segment segment{&decode_.kv(), {&tokens.back(), 1}, false};
    const auto logits = m_.model.Forward({&segment, 1}, m_.experts);
    ASSERT_TRUE(logits.ok()) << logits.status();
    const auto row = logits->last(0);
    tokens.push_back(static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
  }
  EXPECT_EQ(tokens, m_.oracle.greedy_tokens);
}

TEST_F(PrefillServiceTest, TheHandOffIsTheModelsKvBitForBit) {
  options_.service.push.window_bytes = 1;  // one frame at a time
  Serve();
  EXPECT_TRUE(Call(OracleState())->Finish().ok());
  SequenceKv kv = *m_.pools.Reserve(300);
  const Segment segment{&kv, m_.oracle.input_ids, false};
  ASSERT_TRUE(m_.model.Forward({&segment, 1}, m_.experts).ok());
  EXPECT_TRUE(SameBits(HandOffBytes(decode_.kv(), 300), HandOffBytes(kv, 300)));
}

TEST_F(PrefillServiceTest, ACachedPrefixIsReportedCountedAndHandedOver) {
  options_.prefix_cache.bytes = 64 << 20;
  Serve();
  std::vector<float> cold;
  for (const int64_t cached : {0, 256}) {
    auto call = Call(OracleState());
    const auto event = call->NextNews();
    ASSERT_TRUE(event && event->has_first_token());
    EXPECT_EQ(event->first_token().token(), m_.oracle.greedy_tokens[0]);
    EXPECT_EQ(event->first_token().cached_tokens(), cached);
    EXPECT_TRUE(call->Finish().ok());
    EXPECT_TRUE(EventuallyNothingIsLeft());
    if (cached == 0) cold = HandOffBytes(decode_.kv(), 300);
    EXPECT_TRUE(SameBits(HandOffBytes(decode_.kv(), 300), cold));
  }
  EXPECT_TRUE(Eventually([&] { return Metric("cachalot_prefill_prompt_tokens_total") == 300 + 44; }));
  EXPECT_EQ(Metric("cachalot_prefill_prefix_cache_hits_total"), 1);
  EXPECT_EQ(Metric("cachalot_prefill_prefix_cache_misses_total"), 1);
  EXPECT_EQ(Metric("cachalot_prefill_prefix_cache_hit_tokens_total"), 256);
  EXPECT_EQ(Metric("cachalot_prefill_prefix_cache_evicted_blocks_total"), 0);
  EXPECT_GT(Metric("cachalot_prefill_prefix_cache_bytes"), 0);
}

TEST_F(PrefillServiceTest, TheFirstTokenDoesNotWaitForTheVerdict) {
  Serve();
  decode_.Behave(Manner::kHoldVerdict);
  auto call = Call(OracleState());
  const auto first = call->NextNews();
  ASSERT_TRUE(first && first->has_first_token());
  EXPECT_TRUE(Eventually([&] { return decode_.commits == 1; }));
  EXPECT_EQ(decode_.open, 1);
  decode_.GiveVerdict();
  const auto second = call->NextNews();
  EXPECT_TRUE(second && second->has_committed());
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(PrefillServiceTest, AChunkIsSentWhileTheNextIsComputed) {
  Serve();
  m_.experts.Allow(1);
  auto call = Call(OracleState());
  ASSERT_TRUE(m_.experts.WaitForChunk(2));  // is being computed now, and stays so
  const auto wanted = static_cast<int>(m_.pools.layout().AppendedRows(0, 64).size());
  EXPECT_TRUE(Eventually([&] { return decode_.frames == wanted; }));
  m_.experts.AllowAll();
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(PrefillServiceTest, ProgressFollowsTheChunks) {
  options_.service.heartbeat = std::chrono::hours(1);
  Serve();
  auto call = Call(OracleState());
  for (const int64_t done : {64, 128, 192, 256, 300}) {
    const auto event = call->Next();
    ASSERT_TRUE(event && event->has_progress());
    EXPECT_EQ(event->progress().tokens_done(), done);
  }
  EXPECT_TRUE(call->Next()->has_first_token());
  EXPECT_TRUE(call->Next()->has_committed());
  EXPECT_FALSE(call->Next());
  EXPECT_TRUE(call->Finish().ok());
}

TEST_F(PrefillServiceTest, ABlockedQueueStillShowsSignsOfLife) {
  options_.service.heartbeat = std::chrono::milliseconds(5);
  Serve();
  m_.experts.Allow(0);
  auto first = Call(OracleState());
  ASSERT_TRUE(m_.experts.WaitForChunk(1));
  auto second = Call(OracleState());
  for (int i = 0; i < 3; ++i) {
    for (auto* call : {first.get(), second.get()}) {
      const auto event = call->Next();
      ASSERT_TRUE(event && event->has_progress());
      EXPECT_EQ(event->progress().tokens_done(), 0);
    }
  }
  const v1::Description description = Describe();
  EXPECT_EQ(description.role(), v1::ROLE_PREFILL);
  EXPECT_NE(description.epoch(), 0u);
  EXPECT_EQ(description.load().running_sequences(), 2);
  EXPECT_EQ(description.load().waiting_tokens(), 600);
  EXPECT_GT(description.load().used_kv_blocks(), 0);
  EXPECT_GT(description.load().free_kv_tokens(), 0);
}

TEST_F(PrefillServiceTest, SamplesAsTheRequestSays) {
  Serve();
  SequenceState state = OracleState();
  state.emitted = {m_.oracle.greedy_tokens[0], m_.oracle.greedy_tokens[1]};
  auto call = Call(state);
  const auto event = call->NextNews();
  ASSERT_TRUE(event && event->has_first_token());
  EXPECT_EQ(event->first_token().token(), m_.oracle.greedy_tokens[2]);
  EXPECT_TRUE(call->Finish().ok());
  EXPECT_EQ(decode_.commit()->first_index, 2);
  EXPECT_EQ(decode_.commit()->tokens, 302);
}

TEST_F(PrefillServiceTest, AFirstTokenThatIsTheLastCommitsNothing) {
  Serve();
  SequenceState stops = OracleState();
  stops.params.stop_token_ids = {m_.oracle.greedy_tokens[0]};
  for (const auto& [state, finish] : {std::pair(stops, v1::STEP_FINISH_STOP),
                                      std::pair(m_.State(m_.oracle.input_ids, 1), v1::STEP_FINISH_LENGTH)}) {
    auto call = Call(state);
    const auto event = call->NextNews();
    ASSERT_TRUE(event && event->has_first_token());
    EXPECT_EQ(event->first_token().finish(), finish);
    EXPECT_FALSE(call->NextNews());
    EXPECT_TRUE(call->Finish().ok());
    EXPECT_TRUE(EventuallyNothingIsLeft());
  }
  EXPECT_EQ(decode_.commits, 0);
  EXPECT_LE(decode_.streams, 1);  // nothing can come of the second
}

TEST_F(PrefillServiceTest, DebugLogitsNeedTheirFlag) {
  Serve();
  SequenceState forced = OracleState(), logits = OracleState();
  forced.forced = {1};
  logits.want_logits = true;
  for (const SequenceState& state : {forced, logits}) {
    const Status status = Call(state)->Finish();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(StatusMessage(status),
                HasSubstr("forced tokens and logits need a prefill worker that runs with --debug-logits"));
  }
}

TEST_F(PrefillServiceTest, DebugLogitsAreTheOracles) {
  options_.service.debug_logits = true;
  options_.max_chunk_tokens = 2000;
  Serve();
  // Long enough that the rows of a chunk do not fit into one message.
  SequenceState state = m_.State(m_.Prompt(1100, 1));
  std::copy(m_.oracle.input_ids.begin(), m_.oracle.input_ids.end(), state.prompt.begin());
  state.forced = {17};
  state.want_logits = true;
  auto call = Call(state);
  std::vector<float> values;
  int messages = 0;
  auto event = call->NextNews();
  for (; event && event->has_logits(); event = call->NextNews(), ++messages) {
    EXPECT_LT(event->ByteSizeLong(), 2u << 20);
    EXPECT_EQ(event->logits().first_row(), static_cast<int64_t>(values.size() / 512));
    const std::string& bytes = event->logits().values();
    EXPECT_EQ(bytes.size(), event->logits().rows() * 512 * sizeof(float));
    values.resize(values.size() + bytes.size() / sizeof(float));
    std::memcpy(values.data() + values.size() - bytes.size() / sizeof(float), bytes.data(), bytes.size());
  }
  EXPECT_EQ(messages, 2);
  EXPECT_EQ(values.size(), 1100u * 512);
  for (size_t i = 0; i < m_.oracle.prompt_logits.size(); ++i)
    ASSERT_NEAR(values[i], m_.oracle.prompt_logits[i], 1e-4) << i;
  ASSERT_TRUE(event && event->has_first_token());
  EXPECT_EQ(event->first_token().token(), 17);
}

TEST_F(PrefillServiceTest, AnAttemptThatMissedItsExpertsSaysSoLast) {
  Serve();
  m_.experts.FailNext(DeadlineExceeded("experts of layer 0: no answer"));
  auto missed = Call(OracleState());
  const auto event = missed->NextNews();
  EXPECT_TRUE(event && event->has_experts_away());
  EXPECT_FALSE(missed->NextNews());
  EXPECT_EQ(missed->Finish().code(), StatusCode::kUnavailable);
  m_.experts.FailNext(Internal("a bug"));
  auto other = Call(OracleState());
  EXPECT_FALSE(other->NextNews());
  EXPECT_EQ(other->Finish().code(), StatusCode::kInternal);
}

TEST_F(PrefillServiceTest, AnIncompatibleRouterIsRefused) {
  Serve();
  v1::PrefillRequest request = Request(OracleState());
  request.mutable_compat()->set_weights("others");
  const Status status = Call(request)->Finish();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(StatusMessage(status), HasSubstr("weights"));
}

TEST_F(PrefillServiceTest, NonsenseIsRefused) {
  Serve();
  const auto code = [&](auto edit) {
    v1::PrefillRequest request = Request(OracleState());
    edit(request);
    return Call(request)->Finish().code();
  };
  EXPECT_EQ(code([](auto& r) { r.mutable_state()->clear_prompt(); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.mutable_state()->add_prompt(512); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.mutable_state()->mutable_params()->set_max_tokens(0); }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.clear_decode_address(); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.clear_lease(); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(server_->pools().used_blocks(), 0);
  EXPECT_EQ(Metric("cachalot_prefill_requests_total"), 5);
  EXPECT_EQ(Metric("cachalot_prefill_failed_requests_total"), 5);
}

TEST_F(PrefillServiceTest, TheQueueHasALimit) {
  options_.service.max_queue = 1;
  Serve();
  m_.experts.Allow(0);
  auto first = Call(OracleState());
  ASSERT_TRUE(m_.experts.WaitForChunk(1));
  EXPECT_FALSE(Describe().load().kv_wanted());
  const Status status = Call(OracleState())->Finish();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(StatusMessage(status), HasSubstr("the queue is full: 1 jobs, --max-queue is 1"));
  EXPECT_TRUE(Describe().load().kv_wanted()) << "those who hold places and read nothing would keep them";
  m_.experts.AllowAll();
  EXPECT_TRUE(first->Finish().ok());
}

TEST_F(PrefillServiceTest, JobsWaitForKvInTheirOrder) {
  options_.max_sequences = 1;
  options_.service.kv_wait = std::chrono::hours(1);
  options_.service.heartbeat = std::chrono::milliseconds(5);
  Serve();
  m_.experts.Allow(0);
  const SequenceState state = m_.State(m_.oracle.input_ids, 1);  // nothing to push
  auto first = Call(state);
  ASSERT_TRUE(m_.experts.WaitForChunk(1));
  std::vector<std::unique_ptr<testing::PrefillCaller>> waiting;
  for (int i = 0; i < 3; ++i) {
    waiting.push_back(Call(state));
    const auto alive = waiting.back()->Next();
    ASSERT_TRUE(alive && alive->has_progress());
  }
  EXPECT_EQ(Describe().load().running_sequences(), 4);
  EXPECT_TRUE(Describe().load().kv_wanted());
  waiting[0]->Cancel();  // the next is the first then
  EXPECT_EQ(waiting[0]->Finish().code(), StatusCode::kCancelled);
  m_.experts.AllowAll();
  EXPECT_TRUE(first->Finish().ok());
  EXPECT_TRUE(waiting[2]->Finish().ok());
  // It came before the other, which has ended: nothing is left but to read it.
  EXPECT_EQ(Metric("cachalot_prefill_queue_length"), 0);
  EXPECT_TRUE(waiting[1]->Finish().ok());
  EXPECT_FALSE(Describe().load().kv_wanted());
  EXPECT_TRUE(EventuallyNothingIsLeft());
}

TEST_F(PrefillServiceTest, KvHasALimit) {
  options_.max_sequences = 1;
  options_.service.kv_wait = std::chrono::milliseconds(20);
  Serve();
  m_.experts.Allow(0);
  auto first = Call(OracleState());
  ASSERT_TRUE(m_.experts.WaitForChunk(1));
  const Status status = Call(OracleState())->Finish();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(StatusMessage(status), HasSubstr("KV pool"));
}

TEST_F(PrefillServiceTest, WhatItsKvNeverHoldsIsToldBothNumbers) {
  options_.max_sequences = 1;
  options_.kv_tokens = 128;
  Serve();
  const SequenceState state = OracleState();
  const Status status = Call(state)->Finish();
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_THAT(StatusMessage(status),
              HasSubstr("prompt and output so far have " + std::to_string(state.prompt.size()) +
                        " tokens, more than this prefill worker's KV of "));
  EXPECT_THAT(StatusMessage(status), HasSubstr("; raise its --kv-tokens"));
}

TEST_F(PrefillServiceTest, VerdictsArePassedOn) {
  Serve();
  const Status aborted = EndWith(Manner::kAnswer, Aborted("the lease is gone"));
  EXPECT_EQ(aborted.code(), StatusCode::kAborted);
  EXPECT_THAT(StatusMessage(aborted), HasSubstr("the lease is gone"));
}

TEST_F(PrefillServiceTest, AnEarlyVerdictEndsTheCallAtOnce) {
  Serve();
  m_.experts.Allow(1);
  decode_.Behave(Manner::kRefuse, Aborted("attempt 2 was replaced by attempt 3"));
  // It does not take the rest of the prompt to know.
  const Status status = Call(OracleState())->Finish();
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  m_.experts.AllowAll();
  EXPECT_TRUE(EventuallyNothingIsLeft());
  EXPECT_LE(m_.experts.chunks(), 2);
}

TEST_F(PrefillServiceTest, AStreamThatEndsWithoutAVerdictIsAFailure) {
  Serve();
  EXPECT_EQ(EndWith(Manner::kEnd, OkStatus()).code(), StatusCode::kUnavailable);
}

TEST_F(PrefillServiceTest, TheStatusOfAStreamThatEndsIsPassedOn) {
  Serve();
  const Status status = EndWith(Manner::kEnd, Aborted("no such lease"));
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(StatusMessage(status), HasSubstr("no such lease"));
}

TEST_F(PrefillServiceTest, ASilentDecodeWorkerAborts) {
  options_.service.push.verdict = std::chrono::milliseconds(20);
  Serve();
  const Status status = EndWith(Manner::kHoldVerdict, std::nullopt);
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(StatusMessage(status), HasSubstr("give its verdict"));
}

TEST_F(PrefillServiceTest, ADecodeWorkerThatTakesNoFramesAborts) {
  options_.service.push.write = std::chrono::milliseconds(50);
  options_.service.push.verdict = std::chrono::milliseconds(50);
  Serve();
  decode_.Behave(Manner::kDoNotRead);
  const Status status = Call(m_.State(m_.Prompt(4000, 1)))->Finish();
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(StatusMessage(status), HasSubstr("decode worker 127.0.0.1:"));
  EXPECT_TRUE(EventuallyNothingIsLeft());
}

TEST_F(PrefillServiceTest, AnUnreachableDecodeWorkerEndsTheJob) {
  Serve();
  m_.experts.Allow(0);
  v1::PrefillRequest request = Request(OracleState());
  request.set_decode_address("127.0.0.1:1");
  const Status status = Call(request)->Finish();  // although its first chunk is not there yet
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(status), HasSubstr("127.0.0.1:1"));
  m_.experts.AllowAll();
  EXPECT_TRUE(EventuallyNothingIsLeft());
}

TEST_F(PrefillServiceTest, ExpertsThatAreAwayForAMomentAreWaitedFor) {
  Serve();
  m_.experts.FailNext(Unavailable("shard 3 is away"));
  EXPECT_TRUE(Call(OracleState())->Finish().ok());
  EXPECT_TRUE(EventuallyNothingIsLeft());
}

TEST_F(PrefillServiceTest, SilentExpertsMakeTheCallUnavailable) {
  Serve();
  m_.experts.FailNext(DeadlineExceeded("shard 3 did not answer"));
  const Status status = Call(OracleState())->Finish();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(status), HasSubstr("shard 3"));
  EXPECT_TRUE(EventuallyNothingIsLeft());
  EXPECT_TRUE(Call(OracleState())->Finish().ok());
}

TEST_F(PrefillServiceTest, ExpertsThatAreNotThereEndTheStart) {
  PrefillServer server(options_, {m_.weights, &m_.kernels, &m_.threads}, &registry_);
  const Status status = server.Start([](rpc::Loop*) -> StatusOr<std::unique_ptr<ExpertBackend>> {
    return FailedPrecondition("shard 1 has other weights");
  });
  EXPECT_EQ(status, FailedPrecondition("shard 1 has other weights"));
}

TEST_F(PrefillServiceTest, ADrainRefusesNewCallsAndLetsOldOnesEnd) {
  Serve();
  m_.experts.Allow(0);
  auto running = Call(OracleState());
  ASSERT_TRUE(m_.experts.WaitForChunk(1));
  EXPECT_FALSE(server_->Drain(Duration::zero()));
  const Status refused = Call(OracleState())->Finish();
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(refused), HasSubstr("draining"));
  m_.experts.AllowAll();
  EXPECT_TRUE(server_->Drain(std::chrono::seconds(30)));
  server_->Shutdown();
  EXPECT_TRUE(running->Finish().ok());
}

TEST_F(PrefillServiceTest, AShutdownEndsRunningCalls) {
  Serve();
  m_.experts.Allow(1);
  auto running = Call(OracleState());
  ASSERT_TRUE(m_.experts.WaitForChunk(2));
  std::thread stop([&] { server_->Shutdown(); });
  EXPECT_FALSE(running->Finish().ok());
  m_.experts.AllowAll();
  stop.join();
  EXPECT_EQ(server_->pools().used_blocks(), 0);
}

}  // namespace
}  // namespace cachalot

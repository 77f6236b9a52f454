#include "tests/decode_worker/service_harness.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/cluster/compat.h"
#include "common/rpc/error_map.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/create_channel.h"

namespace cachalot::testing {
namespace {

constexpr int kMaxMessage = 64 << 20;

std::chrono::system_clock::time_point CallDeadline() { return std::chrono::system_clock::now() + kPatience; }

/// On the loop from its construction on, as every call.
rpc::Task<std::unique_ptr<rpc::RawClientStream>> StartPush(rpc::Loop* loop, rpc::CallOptions options,
                                                           std::shared_ptr<grpc::Channel> channel) {
  auto stream = std::make_unique<rpc::RawClientStream>(loop, options);
  const bool started = co_await stream->StartRaw(channel, "/cachalot.v1.KvTransfer/Push");
  CHECK_MSG(started, "the Push stream did not start");
  co_return stream;
}

rpc::Task<bool> WriteFrame(rpc::RawClientStream* stream, grpc::ByteBuffer frame) {
  co_return co_await stream->Write(frame);
}

rpc::Task<Status> ReadVerdict(rpc::RawClientStream* stream) {
  grpc::ByteBuffer buffer;
  if (!co_await stream->Read(&buffer)) co_return Internal("the stream ended without a verdict");
  std::vector<std::byte> bytes(buffer.Length());
  rpc::FrameCursor(buffer).Read(bytes);
  const auto frame = ParseKvFrame(bytes);
  if (!frame.ok()) co_return frame.status();
  if (frame->header.kind != KvFrameKind::kVerdict) co_return Internal("no verdict");
  co_return DecodeVerdict(frame->payload);
}

rpc::Task<Status> EndPush(std::unique_ptr<rpc::RawClientStream> stream, bool cancel) {
  if (cancel) {
    stream->TryCancel();
  } else {
    co_await stream->WritesDone();
  }
  co_return co_await stream->Finish();
}

}  // namespace

bool Eventually(const std::function<bool()>& condition) {
  const TimePoint end = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

TestRouter::TestRouter(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(kMaxMessage);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // what is not read stays at the server beyond 64 KiB
  stub_ =
      v1::Decode::NewStub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  context_.set_deadline(CallDeadline());
  stream_ = stub_->Session(&context_);
}

TestRouter::~TestRouter() {
  if (finished_) return;
  Cancel();
  Finish().IgnoreError();
}

bool TestRouter::Hello(const v1::Compat& compat, bool takes_preemption) {
  v1::SessionRequest request;
  request.mutable_hello()->set_takes_preemption(takes_preemption);
  *request.mutable_hello()->mutable_compat() = compat;
  return Send(request);
}

bool TestRouter::Open(uint64_t handle, const SequenceState& state) {
  v1::SessionRequest request;
  request.mutable_open()->set_handle(handle);
  *request.mutable_open()->mutable_state() = ToProto(state);
  return Send(request);
}

bool TestRouter::Acknowledge(uint64_t handle, int64_t next_index) {
  v1::SessionRequest request;
  request.mutable_acknowledge()->add_handles(handle);
  request.mutable_acknowledge()->add_next_index(next_index);
  return Send(request);
}

bool TestRouter::Close(uint64_t handle) {
  v1::SessionRequest request;
  request.mutable_close()->set_handle(handle);
  return Send(request);
}

bool TestRouter::Heartbeat() {
  v1::SessionRequest request;
  request.mutable_heartbeat();
  return Send(request);
}

v1::SessionResponse TestRouter::NextOfAnyKind() {
  v1::SessionResponse response;
  if (!stream_->Read(&response)) return {};
  return response;
}

v1::SessionResponse TestRouter::Next() {
  v1::SessionResponse response;
  do {
    response = NextOfAnyKind();
  } while (response.has_heartbeat());
  return response;
}

v1::HelloReply TestRouter::Greet(const v1::Compat& compat, bool takes_preemption) {
  EXPECT_TRUE(Hello(compat, takes_preemption));
  const v1::SessionResponse response = Next();
  EXPECT_TRUE(response.has_hello()) << response.DebugString();
  return response.hello();
}

v1::Lease TestRouter::Lease(uint64_t handle, const SequenceState& state) {
  EXPECT_TRUE(Open(handle, state));
  v1::SessionResponse response = Next();
  for (; response.has_step() || response.has_preempted(); response = Next())
    Take(response, true);  // of other requests
  EXPECT_TRUE(response.has_granted()) << response.DebugString();
  EXPECT_EQ(response.granted().handle(), handle);
  return response.granted().lease();
}

Status TestRouter::Refusal(uint64_t handle, const SequenceState& state) {
  EXPECT_TRUE(Open(handle, state));
  const v1::SessionResponse response = Next();
  EXPECT_TRUE(response.has_failed()) << response.DebugString();
  EXPECT_EQ(response.failed().handle(), handle);
  return MakeStatus(static_cast<StatusCode>(response.failed().code()), response.failed().message());
}

bool TestRouter::ReadTokens(uint64_t handle, size_t count, bool acknowledge) {
  while (tokens[handle].size() < count) {
    if (failed.contains(handle) || preempted.contains(handle)) return false;
    const v1::SessionResponse response = Next();
    if (response.message_case() == v1::SessionResponse::MESSAGE_NOT_SET) return false;
    Take(response, acknowledge);
  }
  return true;
}

void TestRouter::Take(const v1::SessionResponse& response, bool acknowledge) {
  if (response.has_failed()) {
    failed[response.failed().handle()] =
        MakeStatus(static_cast<StatusCode>(response.failed().code()), response.failed().message());
  }
  if (response.has_preempted()) preempted[response.preempted().handle()] = response.preempted().next_index();
  const v1::StepBatch& step = response.step();
  largest_step = std::max(largest_step, step.handles_size());
  for (int i = 0; i < step.handles_size(); ++i) {
    const uint64_t handle = step.handles(i);
    EXPECT_EQ(step.indices(i), static_cast<int64_t>(tokens[handle].size()));
    tokens[handle].push_back(step.tokens(i));
    if (step.finish(i) != v1::STEP_FINISH_NONE) finish[handle] = step.finish(i);
    if (step.logits_size() > 0) logits[handle].push_back(step.logits(i));
    if (acknowledge) Acknowledge(handle, step.indices(i) + 1);
  }
}

Status TestRouter::Finish() {
  v1::SessionResponse response;
  while (stream_->Read(&response)) Take(response, false);
  finished_ = true;
  return rpc::FromGrpc(stream_->Finish(), /*given_by_handler=*/true);
}

TestPush::TestPush(rpc::Loop* loop, const std::shared_ptr<grpc::Channel>& channel, uint64_t lease)
    : loop_(loop) {
  rpc::CallOptions options{.deadline = loop->Now() + kPatience};
  if (lease != 0) options.metadata = {{kLeaseMetadata, std::to_string(lease)}};
  stream_ = *rpc::BlockOn(loop_, StartPush(loop, std::move(options), channel), kPatience, "start of Push");
}

TestPush::~TestPush() {
  if (stream_) rpc::BlockOn(loop_, EndPush(std::move(stream_), true), kPatience, "end of Push").IgnoreError();
}

bool TestPush::Write(const std::vector<std::byte>& frame) {
  return *rpc::BlockOn(loop_, WriteFrame(stream_.get(), rpc::CopyFrame(frame)), kPatience,
                       "write of a KV frame");
}

Status TestPush::Verdict() { return rpc::BlockOn(loop_, ReadVerdict(stream_.get()), kPatience, "a verdict"); }

Status TestPush::Finish() {
  return rpc::BlockOn(loop_, EndPush(std::move(stream_), false), kPatience, "end of Push");
}

void ServiceTest::TearDown() {
  channel_.reset();
  server_.reset();
}

void ServiceTest::Start(StepLoop::MakeExperts make_experts) {
  server_ = std::make_unique<DecodeServer>(engine_.weights(), **kernels::SelectKernels("auto"), clock_,
                                           registry_, options_);
  const Status started = server_->Start(make_experts ? std::move(make_experts) : server_->LocalBackend());
  ASSERT_TRUE(started.ok()) << started;
  address_ = "127.0.0.1:" + std::to_string(server_->port());
  channel_ = rpc::CreateChannel(address_, {.max_message_bytes = kMaxMessage});
}

ServiceTest::HandOff ServiceTest::Prefill(const SequenceState& state, const v1::Lease& lease,
                                          uint32_t attempt) {
  HandOff hand_off;
  SequenceKv kv = *engine_.pools().Reserve(state.MaxTokens());
  hand_off.first_token = engine_.Prefill(state, kv);
  KvCommit commit{kv.tokens(), hand_off.first_token, static_cast<int64_t>(state.emitted.size()), {}};
  for (const RowRange& range : HandOffRows(kv.layout(), kv.tokens())) {
    hand_off.rows.push_back(EncodeRows(kv, range, lease.id(), lease.epoch(), attempt));
    commit.tally.Add(ParseKvFrame(hand_off.rows.back())->header);
  }
  hand_off.commit = EncodeCommit(commit, lease.id(), lease.epoch(), attempt);
  return hand_off;
}

Status ServiceTest::Push(const HandOff& hand_off) {
  const auto push = NewPush();
  for (const auto& frame : hand_off.rows) EXPECT_TRUE(push->Write(frame));
  EXPECT_TRUE(push->Write(hand_off.commit));
  const Status verdict = push->Verdict();
  EXPECT_TRUE(push->Finish().ok());
  return verdict;
}

SequenceState ServiceTest::QueueUnread(TestRouter& router) {
  SequenceState state = engine_.OtherState(6, 250, 5);  // a window, 2 KiB each
  state.want_logits = true;
  std::vector<HandOff> hand_offs;
  for (uint64_t handle : {1, 2, 3, 4}) hand_offs.push_back(Prefill(state, router.Lease(handle, state)));
  for (const HandOff& hand_off : hand_offs) EXPECT_TRUE(Push(hand_off).ok());
  for (uint64_t handle : {1, 2, 3, 4}) router.tokens[handle] = {hand_offs[handle - 1].first_token};
  EXPECT_TRUE(AllFree());
  return state;
}

void ServiceTest::Run(TestRouter& router, uint64_t handle, const SequenceState& state) {
  const HandOff hand_off = Prefill(state, router.Lease(handle, state));
  router.tokens[handle] = state.emitted;
  router.tokens[handle].push_back(hand_off.first_token);
  const Status verdict = Push(hand_off);
  EXPECT_TRUE(verdict.ok()) << verdict;
}

std::unique_ptr<TestRouter> ServiceTest::GreetedRouter(bool takes_preemption) {
  auto router = NewRouter();
  const v1::HelloReply reply = router->Greet(server_->compat(), takes_preemption);
  EXPECT_EQ(reply.epoch(), server_->epoch());
  return router;
}

bool ServiceTest::Healthy(const std::string& service) {
  grpc::ClientContext context;
  context.set_deadline(CallDeadline());
  ::grpc::health::v1::HealthCheckRequest request;
  ::grpc::health::v1::HealthCheckResponse response;
  request.set_service(service);
  const auto status = ::grpc::health::v1::Health::NewStub(channel_)->Check(&context, request, &response);
  return status.ok() && response.status() == ::grpc::health::v1::HealthCheckResponse::SERVING;
}

v1::Description ServiceTest::Describe() {
  grpc::ClientContext context;
  context.set_deadline(CallDeadline());
  v1::Description description;
  const auto status = v1::Cluster::NewStub(channel_)->Describe(&context, {}, &description);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return description;
}

}  // namespace cachalot::testing

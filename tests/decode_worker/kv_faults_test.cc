// KV pushes over a link that loses, repeats, spoils and delays frames: the prefill worker's encoder and push,
// a relay with a FaultProxy in the middle, the decode worker's service. Whatever happens on the way, the
// sequence either runs with the right bits or not at all, and the next attempt repairs it.

#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <mutex>

#include "common/transport/fault_proxy.h"
#include "common/transport/inproc_transport.h"
#include "prefill_worker/kv_publisher.h"
#include "tests/decode_worker/service_harness.h"

namespace cachalot::testing {
namespace {

using Code = StatusCode;

constexpr FrameDirection kOut = FrameDirection::kOut, kIn = FrameDirection::kIn;
// Of a verdict that never comes. In tests in which it comes nothing waits so long.
constexpr Duration kNoVerdict = std::chrono::milliseconds(200);

Frame FrameOf(const grpc::ByteBuffer& message) {
  rpc::FrameCursor cursor(message);
  Frame frame{std::vector<std::byte>(cursor.remaining())};
  cursor.Read(frame.bytes);
  return frame;
}

/// Forwards Push streams frame by frame, each through a FaultProxy of its own.
class FrameRelay {
 public:
  explicit FrameRelay(const std::shared_ptr<grpc::Channel>& to)
      : to_(to), server_({}), loop_(server_.AddLoop({.name = "relay"})), released_(loop_) {
    server_.Bidi(loop_, &service_, &decltype(service_)::RequestPush,
                 [this](rpc::ServerCall& call, rpc::RawServerStream& stream) { return Push(call, stream); });
    const auto port = server_.Start();
    EXPECT_TRUE(port.ok()) << port.status();
    loop_->Start();
  }
  ~FrameRelay() { server_.Shutdown(Duration::zero()); }
  std::string address() const { return "127.0.0.1:" + std::to_string(server_.port()); }

  /// Of the next stream. `late`: what is held back stays so until Release, which comes when its sender has
  /// gone.
  void SetFaults(FaultPlan plan, bool late = false) {
    std::lock_guard lock(mutex_);
    plan_ = std::move(plan);
    late_ = late;
  }
  void Release() {
    loop_->Post([this] {
      clock_.Advance(2 * kLate);
      released_.Set();
    });
  }
  static constexpr Duration kLate = std::chrono::hours(1);

 private:
  struct Pipe {
    std::unique_ptr<FrameChannel> near, far;  // the faults are in the near end
    rpc::RawServerStream* sender;
    rpc::RawClientStream* receiver;
  };

  rpc::Task<Status> Push(rpc::ServerCall& call, rpc::RawServerStream& sender) {
    FaultPlan plan = [](FrameDirection, int64_t) { return Fault{}; };
    bool late = false;
    {
      std::lock_guard lock(mutex_);
      if (plan_) plan = std::exchange(plan_, nullptr);
      late = std::exchange(late_, false);
    }
    rpc::RawClientStream receiver(
        loop_, {.metadata = {{kLeaseMetadata, call.Metadata(kLeaseMetadata).value_or("")}}});
    FrameChannelPair ends =
        MakeInprocPair(std::make_shared<InprocProgress>(), std::make_shared<InprocProgress>());
    Pipe pipe{std::make_unique<FaultProxy>(std::move(ends.first), std::move(plan), &clock_),
              std::move(ends.second), &sender, &receiver};
    rpc::TaskGroup answers(loop_);
    const bool started = co_await receiver.StartRaw(to_, "/cachalot.v1.KvTransfer/Push");
    if (started) answers.Spawn(Answer(&pipe), "answers");
    grpc::ByteBuffer message;
    while (started && pipe.near->status().ok()) {
      const bool read = co_await sender.Read(&message);
      if (!read) break;
      (void)pipe.near->Post(FrameOf(message), TimePoint::max());
      co_await Forward(&pipe);
    }
    if (late) {
      co_await released_.WaitUntil(TimePoint::max());
      co_await Forward(&pipe);
    }
    const Status broken = pipe.near->status();
    if (broken.ok()) {
      co_await receiver.WritesDone();
    } else {
      receiver.TryCancel();
    }
    (void)co_await receiver.Finish();
    co_await answers.JoinAll();
    co_return broken;
  }

  // Whatever waits for polls moves on.
  static std::vector<Frame> PollAll(FrameChannel& channel) {
    std::vector<Frame> frames;
    for (int i = 0; i < 8; ++i)
      if (std::optional<Frame> frame = channel.Poll()) frames.push_back(std::move(*frame));
    return frames;
  }
  rpc::Task<void> Forward(Pipe* pipe) {
    EXPECT_TRUE(PollAll(*pipe->near).empty());  // answers are taken as they come
    for (std::optional<Frame> frame = pipe->far->Poll(); frame; frame = pipe->far->Poll()) {
      const grpc::ByteBuffer message = rpc::CopyFrame(frame->bytes);
      co_await pipe->receiver->Write(message);
    }
  }
  rpc::Task<void> Answer(Pipe* pipe) {
    grpc::ByteBuffer message;
    for (;;) {
      const bool read = co_await pipe->receiver->Read(&message);
      if (!read) co_return;
      (void)pipe->far->Post(FrameOf(message), TimePoint::max());
      std::vector<Frame> frames = PollAll(*pipe->near);
      for (const Frame& frame : frames) {
        const grpc::ByteBuffer answer = rpc::CopyFrame(frame.bytes);
        co_await pipe->sender->Write(answer);
      }
    }
  }

  const std::shared_ptr<grpc::Channel> to_;
  std::mutex mutex_;
  FaultPlan plan_;  // under mutex_, as late_
  bool late_ = false;
  FakeClock clock_;  // loop thread
  v1::KvTransfer::WithRawMethod_Push<v1::KvTransfer::Service> service_;
  rpc::Server server_;
  rpc::Loop* loop_;
  rpc::Event released_;
};

class KvFaultsTest : public ServiceTest {
 protected:
  void SetUp() override {
    ServiceTest::SetUp();
    options_.leases.heartbeat_timeout = std::chrono::hours(1);
    Start();
    router_ = GreetedRouter();
    relay_ = std::make_unique<FrameRelay>(channel_);
    relay_channel_ = rpc::CreateChannel(relay_->address(), {.max_message_bytes = 64 << 20});
    want_ = engine_.Generate(state_);
  }
  void TearDown() override {
    router_.reset();
    relay_channel_.reset();
    relay_.reset();
    ServiceTest::TearDown();
  }

  /// A lease of its own for the sequence.
  struct Case {
    uint64_t handle = 0;
    v1::Lease lease;
  };
  Case NewCase() {
    const uint64_t handle = next_handle_++;
    return {handle, router_->Lease(handle, state_)};
  }

  struct Encoded {
    std::vector<PushFrame> frames;  // the last is the commit
    int32_t first_token = -1;
  };
  Encoded Encode(const v1::Lease& lease, uint32_t attempt) {
    Encoded encoded;
    const auto report = [&encoded](JobEvent event) {
      if (event.kind == JobEvent::Kind::kFirstToken) encoded.first_token = event.token;
      for (PushFrame& frame : event.frames) encoded.frames.push_back(std::move(frame));
    };
    const auto tokens = static_cast<int64_t>(state_.Context().size());
    const PushTarget target{lease.id(), lease.epoch(), attempt};
    PrefillFlow flow(engine_.model(), engine_.experts(), 64);
    flow.Submit({1, state_, *engine_.pools().Reserve(tokens), 0,
                 std::make_shared<KvEncoder>(target, tokens, 0, report,
                                             KvEncoder::Windows{.frame_bytes = int64_t{64} << 20})});
    while (flow.Step()) {
    }
    EXPECT_TRUE(!encoded.frames.empty() && encoded.frames.back().commit);
    return encoded;
  }

  /// A push that has begun; loop thread but for Verdict.
  struct Running {
    std::shared_ptr<KvPush> push;
    std::promise<Status> settled;
  };
  std::shared_ptr<Running> Begin(const v1::Lease& lease, Duration verdict) {
    auto running = std::make_shared<Running>();
    running->push = std::make_shared<KvPush>(
        &client_loop_, relay_channel_, relay_->address(), lease.id(),
        KvPushOptions{.open = kPatience, .write = kPatience, .verdict = verdict}, [](int64_t) {},
        [raw = running.get()](Status status) { raw->settled.set_value(std::move(status)); });
    EXPECT_TRUE(client_loop_.Spawn(Run(running)));
    return running;
  }
  void Add(const std::shared_ptr<Running>& running, std::vector<PushFrame> frames) {
    EXPECT_TRUE(client_loop_.Post([running, frames] { running->push->Add(frames); }));
  }
  static Status Verdict(const std::shared_ptr<Running>& running) {
    auto settled = running->settled.get_future();
    if (settled.wait_for(2 * kPatience) != std::future_status::ready)
      return Internal("the push does not settle");
    return settled.get();
  }
  Status PushAll(const v1::Lease& lease, const Encoded& encoded, FaultPlan plan,
                 Duration verdict = kPatience) {
    relay_->SetFaults(std::move(plan));
    const auto running = Begin(lease, verdict);
    Add(running, encoded.frames);
    return Verdict(running);
  }
  static rpc::Task<void> Run(std::shared_ptr<Running> running) {
    rpc::CancelScope scope;
    co_await KvPush::Run(running->push, &scope);
  }

  static FaultPlan None() {
    return [](FrameDirection, int64_t) { return Fault{}; };
  }
  void ExpectRight(const Case& c, int32_t first_token) {
    router_->tokens[c.handle] = {first_token};
    EXPECT_TRUE(router_->ReadTokens(c.handle, want_.size()));
    EXPECT_EQ(router_->tokens[c.handle], want_);
  }
  /// The attempt is lost with `code`, and nothing runs; the next one is not.
  void ExpectRepaired(const Case& c, const Status& lost, Code code) {
    EXPECT_EQ(lost.code(), code) << lost;
    const Encoded again = Encode(c.lease, 2);
    const Status verdict = PushAll(c.lease, again, None());
    EXPECT_TRUE(verdict.ok()) << verdict;
    ExpectRight(c, again.first_token);
  }
  static std::vector<size_t> Places(size_t frames) { return {0, 1, frames / 2, frames - 2, frames - 1}; }

  const SequenceState state_ = engine_.OtherState(140, 6, 5);
  std::vector<int32_t> want_;
  uint64_t next_handle_ = 1;
  std::unique_ptr<TestRouter> router_;
  std::unique_ptr<FrameRelay> relay_;
  std::shared_ptr<grpc::Channel> relay_channel_;
};

TEST_F(KvFaultsTest, NoFaultNoTrace) {
  const Case c = NewCase();
  const Encoded encoded = Encode(c.lease, 1);
  ASSERT_GE(encoded.frames.size(), 8u) << "too few to lose some";
  EXPECT_TRUE(PushAll(c.lease, encoded, None()).ok());
  ExpectRight(c, encoded.first_token);
  EXPECT_TRUE(AllFree());
}

TEST_F(KvFaultsTest, ALostFrameLosesTheAttempt) {
  const size_t frames = Encode({}, 1).frames.size();
  for (const size_t at : Places(frames)) {
    SCOPED_TRACE(at);
    const Case c = NewCase();
    const bool commit = at == frames - 1;  // then nobody is asked for a verdict
    const Status lost =
        PushAll(c.lease, Encode(c.lease, 1), FaultAt(kOut, static_cast<int64_t>(at), {.lose = true}),
                commit ? kNoVerdict : kPatience);
    ExpectRepaired(c, lost, commit ? Code::kAborted : Code::kDataLoss);
  }
  EXPECT_TRUE(AllFree());
}

TEST_F(KvFaultsTest, ARepeatedFrameLosesTheAttemptButForTheCommit) {
  const size_t frames = Encode({}, 1).frames.size();
  for (const size_t at : Places(frames)) {
    SCOPED_TRACE(at);
    const Case c = NewCase();
    const Encoded encoded = Encode(c.lease, 1);
    const Status verdict =
        PushAll(c.lease, encoded, FaultAt(kOut, static_cast<int64_t>(at), {.duplicate = true}));
    if (at < frames - 1) {
      ExpectRepaired(c, verdict, Code::kDataLoss);
    } else {
      EXPECT_TRUE(verdict.ok()) << verdict;
      ExpectRight(c, encoded.first_token);
    }
  }
  EXPECT_TRUE(AllFree());
}

/// One bit anywhere: header, rows, commit.
TEST_F(KvFaultsTest, ASpoiltFrameLosesTheAttempt) {
  const size_t frames = Encode({}, 1).frames.size();
  for (const size_t at : Places(frames))
    for (const size_t byte : {size_t{0}, offsetof(KvFrameHeader, lease), offsetof(KvFrameHeader, attempt),
                              offsetof(KvFrameHeader, first_row), sizeof(KvFrameHeader) + 3}) {
      SCOPED_TRACE(std::to_string(at) + " byte " + std::to_string(byte));
      const Case c = NewCase();
      const Status lost = PushAll(c.lease, Encode(c.lease, 1),
                                  FaultAt(kOut, static_cast<int64_t>(at), {.corrupt_byte = byte}));
      ExpectRepaired(c, lost, Code::kDataLoss);
    }
  EXPECT_TRUE(AllFree());
}

TEST_F(KvFaultsTest, ALinkThatDiesLosesTheAttempt) {
  const size_t frames = Encode({}, 1).frames.size();
  for (const size_t at : Places(frames)) {
    SCOPED_TRACE(at);
    const Case c = NewCase();
    const Status lost = PushAll(c.lease, Encode(c.lease, 1), DieAfter(kOut, static_cast<int64_t>(at)));
    ExpectRepaired(c, lost, Code::kUnavailable);
  }
  EXPECT_TRUE(AllFree());
}

/// Then the sequence runs, though its prefill worker does not know; the next attempt is told so.
TEST_F(KvFaultsTest, AVerdictThatDoesNotArriveStopsNobody) {
  for (const Fault& fault : {Fault{.lose = true}, Fault{.corrupt_byte = 70}, Fault{.duplicate = true}}) {
    const Case c = NewCase();
    const Encoded encoded = Encode(c.lease, 1);
    const Status verdict =
        PushAll(c.lease, encoded, FaultAt(kIn, 0, fault), fault.lose ? kNoVerdict : kPatience);
    EXPECT_EQ(verdict.code(), fault.lose        ? Code::kAborted
                              : fault.duplicate ? Code::kOk
                                                : Code::kDataLoss)
        << verdict;
    EXPECT_EQ(PushAll(c.lease, Encode(c.lease, 2), None()).code(), Code::kAborted);
    ExpectRight(c, encoded.first_token);
  }
  EXPECT_TRUE(AllFree());
}

/// Frames of an attempt that was given up arrive in the middle of the next one, and behind its commit.
TEST_F(KvFaultsTest, LateFramesOfAnOlderAttemptAreDropped) {
  for (const bool behind_commit : {false, true}) {
    SCOPED_TRACE(behind_commit);
    const Case c = NewCase();
    const Encoded old = Encode(c.lease, 1), fresh = Encode(c.lease, 2);
    const double stale = Metric("stale_frames_total"), received = Metric("kv_received_bytes_total");
    double expected = received;
    const auto count = [&expected](const PushFrame& frame) {
      expected += static_cast<double>(frame.bytes->size());
    };
    const size_t half = old.frames.size() / 2;
    std::for_each(old.frames.begin(), old.frames.begin() + static_cast<std::ptrdiff_t>(half), count);
    relay_->SetFaults(FaultAt(kOut, static_cast<int64_t>(half), {.delay = FrameRelay::kLate}), /*late=*/true);
    const auto first = Begin(c.lease, kNoVerdict);
    Add(first, old.frames);
    EXPECT_EQ(Verdict(first).code(), Code::kAborted) << "its sender has given up";
    EXPECT_EQ(Metric("kv_received_bytes_total"), expected);

    const auto second = Begin(c.lease, kPatience);
    const auto middle = fresh.frames.begin() + static_cast<std::ptrdiff_t>(half);
    Add(second, {fresh.frames.begin(), middle});
    std::for_each(fresh.frames.begin(), middle, count);
    EXPECT_TRUE(Eventually([&] { return Metric("kv_received_bytes_total") == expected; }));
    EXPECT_EQ(Metric("stale_frames_total"), stale);
    const auto late = static_cast<double>(old.frames.size() - half);
    const auto release = [&] {
      relay_->Release();
      EXPECT_TRUE(Eventually([&] { return Metric("stale_frames_total") == stale + late; }));
    };
    if (!behind_commit) release();
    Add(second, {middle, fresh.frames.end()});
    const Status verdict = Verdict(second);
    EXPECT_TRUE(verdict.ok()) << verdict;
    ExpectRight(c, fresh.first_token);
    if (behind_commit) relay_->Release();
  }
  EXPECT_TRUE(AllFree());
}

/// Anything at any time. A clean attempt follows; by then it may run already.
TEST_F(KvFaultsTest, RandomFaultsGiveTheRightTokensOrNone) {
  size_t lost = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    const Case c = NewCase();
    int32_t first_token = -1;
    Status verdict;
    for (uint32_t attempt = 1; attempt <= 4; ++attempt) {
      const Encoded encoded = Encode(c.lease, attempt);
      first_token = encoded.first_token;
      FaultPlan plan = attempt < 4 ? RandomFaults(100 * seed + attempt, 0.02) : None();
      verdict = PushAll(c.lease, encoded, std::move(plan), attempt < 4 ? kNoVerdict : kPatience);
      if (verdict.ok()) break;
      ++lost;
    }
    EXPECT_TRUE(verdict.ok() || verdict.code() == Code::kAborted) << verdict;
    ExpectRight(c, first_token);
  }
  EXPECT_GT(lost, 0u) << "nothing was lost: the test shows nothing";
  EXPECT_TRUE(AllFree());
}

}  // namespace
}  // namespace cachalot::testing

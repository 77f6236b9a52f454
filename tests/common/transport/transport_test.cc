// In-process channels, the fault proxy and the selector.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "common/transport/fault_proxy.h"
#include "common/transport/inproc_transport.h"
#include "common/transport/selector.h"

namespace cachalot {
namespace {

using ::testing::HasSubstr;

Frame Bytes(std::initializer_list<int> values) {
  Frame frame;
  for (int value : values) frame.bytes.push_back(static_cast<std::byte>(value));
  return frame;
}

TimePoint Soon() { return SteadyClock().Now() + std::chrono::seconds(10); }

struct Pair {
  explicit Pair(const InprocOptions& options = {}) {
    std::tie(a, b) = MakeInprocPair(progress_a, progress_b, options);
  }
  std::shared_ptr<InprocProgress> progress_a = std::make_shared<InprocProgress>();
  std::shared_ptr<InprocProgress> progress_b = std::make_shared<InprocProgress>();
  std::unique_ptr<FrameChannel> a, b;
};

TEST(Inproc, FramesArriveInOrderAtTheOtherEnd) {
  Pair pair;
  EXPECT_FALSE(pair.b->Poll());
  ASSERT_TRUE(pair.a->Post(Bytes({1}), Soon()).ok());
  ASSERT_TRUE(pair.a->Post(Bytes({2, 3}), Soon()).ok());
  EXPECT_EQ(pair.b->Poll()->bytes, Bytes({1}).bytes);
  EXPECT_EQ(pair.b->Poll()->bytes, Bytes({2, 3}).bytes);
  EXPECT_FALSE(pair.b->Poll());
  EXPECT_FALSE(pair.a->Poll());
}

TEST(Inproc, LimitsAreKept) {
  Pair pair({.max_frame_bytes = 2, .max_queued_frames = 2});
  EXPECT_EQ(pair.a->Post(Bytes({1, 2, 3}), Soon()).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(pair.a->Post(Bytes({1}), Soon()).ok());
  EXPECT_TRUE(pair.a->Post(Bytes({2}), Soon()).ok());
  EXPECT_EQ(pair.a->Post(Bytes({3}), Soon()).code(), StatusCode::kResourceExhausted);
  pair.b->Poll();
  EXPECT_TRUE(pair.a->Post(Bytes({4}), Soon()).ok());
}

TEST(Inproc, AnEndThatGoesBreaksTheOtherWhichStillHasWhatWasSent) {
  Pair pair;
  ASSERT_TRUE(pair.a->Post(Bytes({7}), Soon()).ok());
  pair.a.reset();
  EXPECT_EQ(pair.b->status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(pair.b->Post(Bytes({1}), Soon()).code(), StatusCode::kUnavailable);
  EXPECT_EQ(pair.b->Poll()->bytes, Bytes({7}).bytes);
  EXPECT_FALSE(pair.b->Poll());
}

TEST(Inproc, TwoThreadsEcho) {
  constexpr int kFrames = 2000;
  Pair pair;
  std::thread echo([&] {
    for (int done = 0; done < kFrames;) {
      while (auto frame = pair.b->Poll()) {
        ASSERT_TRUE(pair.b->Post(std::move(*frame), Soon()).ok());
        ++done;
      }
      if (done < kFrames) pair.progress_b->WaitUntil(Soon());
    }
  });
  for (int i = 0; i < kFrames; ++i) {
    ASSERT_TRUE(pair.a->Post(Bytes({i & 255, i >> 8}), Soon()).ok());
    std::optional<Frame> frame;
    while (!(frame = pair.a->Poll())) pair.progress_a->WaitUntil(Soon());
    ASSERT_EQ(frame->bytes, Bytes({i & 255, i >> 8}).bytes);
  }
  echo.join();
}

TEST(Inproc, WaitEndsAtItsDeadline) {
  InprocProgress progress;
  progress.WaitUntil(TimePoint::min());
  const TimePoint deadline = SteadyClock().Now() + std::chrono::milliseconds(5);
  progress.WaitUntil(deadline);
  EXPECT_GE(SteadyClock().Now(), deadline);
  progress.Wake();
  progress.WaitUntil(TimePoint::max());
}

struct Faulty {
  explicit Faulty(FaultPlan plan) : proxy(std::move(pair.a), std::move(plan), &clock) {}
  std::vector<int> ReceiveAll() {
    std::vector<int> values;
    while (auto frame = pair.b->Poll()) values.push_back(static_cast<int>(frame->bytes[0]));
    return values;
  }
  FakeClock clock;
  Pair pair;
  FaultProxy proxy;
};

TEST(FaultProxy, LosesDuplicatesAndCorrupts) {
  Faulty f([](FrameDirection direction, int64_t index) {
    Fault fault;
    if (direction == FrameDirection::kIn) return fault;
    fault.lose = index == 0;
    fault.duplicate = index == 1;
    if (index == 2) fault.corrupt_byte = 0;
    return fault;
  });
  for (int i : {10, 20, 30, 40}) ASSERT_TRUE(f.proxy.Post(Bytes({i}), Soon()).ok());
  EXPECT_EQ(f.ReceiveAll(), (std::vector<int>{20, 20, 31, 40}));
}

TEST(FaultProxy, DelaysByPollsAndByTheClockAndKeepsTheOrder) {
  Faulty f([](FrameDirection, int64_t index) {
    Fault fault;
    if (index == 0) fault.delay_polls = 2;
    if (index == 1) fault.delay = std::chrono::milliseconds(7);
    return fault;
  });
  for (int i : {1, 2, 3}) ASSERT_TRUE(f.proxy.Post(Bytes({i}), Soon()).ok());
  f.proxy.Poll();
  EXPECT_TRUE(f.ReceiveAll().empty());
  f.proxy.Poll();
  EXPECT_EQ(f.ReceiveAll(), std::vector<int>{1});
  f.clock.Advance(std::chrono::milliseconds(7));
  f.proxy.Poll();
  EXPECT_EQ(f.ReceiveAll(), (std::vector<int>{2, 3}));
}

TEST(FaultProxy, DelaysWhatComesIn) {
  Faulty f(FaultAt(FrameDirection::kIn, 0, {.delay_polls = 1}));
  ASSERT_TRUE(f.pair.b->Post(Bytes({5}), Soon()).ok());
  EXPECT_FALSE(f.proxy.Poll());
  EXPECT_EQ(f.proxy.Poll()->bytes, Bytes({5}).bytes);
}

TEST(FaultProxy, DiesAfterSoManyFrames) {
  Faulty f(DieAfter(FrameDirection::kOut, 1));
  EXPECT_TRUE(f.proxy.Post(Bytes({1}), Soon()).ok());
  EXPECT_EQ(f.proxy.Post(Bytes({2}), Soon()).code(), StatusCode::kUnavailable);
  EXPECT_EQ(f.proxy.status().code(), StatusCode::kUnavailable);
  EXPECT_FALSE(f.proxy.Poll());
  EXPECT_EQ(f.pair.b->status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(f.ReceiveAll(), std::vector<int>{1});
  EXPECT_EQ(f.proxy.capabilities().name, "inproc");
}

TEST(FaultProxy, RandomFaultsRepeat) {
  auto one = RandomFaults(3, 0.3), two = RandomFaults(3, 0.3);
  int lost = 0;
  for (int i = 0; i < 1000; ++i) {
    const Fault a = one(FrameDirection::kOut, i), b = two(FrameDirection::kOut, i);
    EXPECT_EQ(a.lose, b.lose);
    EXPECT_EQ(a.corrupt_byte, b.corrupt_byte);
    EXPECT_EQ(a.delay_polls, b.delay_polls);
    lost += a.lose;
  }
  EXPECT_GT(lost, 200);
  EXPECT_LT(lost, 400);
}

const std::vector<Capabilities> kOurs = {
    {"inproc", false, false, false, 1000},
    {"ucx", true, true, true, 100},
    {"grpc", true, true, false, 1000},
};

TEST(Selector, TakesTheFirstThatFitsAndSaysWhy) {
  const std::vector<std::string> all = {"grpc", "inproc", "ucx"};
  EXPECT_EQ(SelectTransport(kOurs, all, {})->name, "inproc");
  EXPECT_EQ(SelectTransport(kOurs, all, {})->reason, "the first choice");
  EXPECT_EQ(SelectTransport(kOurs, all, {.other_process = true})->name, "ucx");
  const auto large = SelectTransport(kOurs, all, {.other_host = true, .frame_bytes = 500});
  EXPECT_EQ(large->name, "grpc");
  EXPECT_EQ(large->reason, "not inproc (it does not cross hosts), ucx (frames of 500 bytes, at most 100)");
}

TEST(Selector, SaysOfEachWhyNot) {
  const std::vector<std::string> offers = {"grpc"};
  const auto none = SelectTransport(kOurs, offers, {.device_memory = true});
  EXPECT_EQ(none.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(StatusMessage(none.status()), HasSubstr("inproc (the peer has none)"));
  EXPECT_THAT(StatusMessage(none.status()), HasSubstr("grpc (it does not reach device memory)"));
  EXPECT_THAT(StatusMessage(SelectTransport({}, offers, {}).status()), HasSubstr("none is built in"));
}

}  // namespace
}  // namespace cachalot

// A caller that does not read the rows it asked for: they stay in bounds, and nobody else waits for it.

#include <cstring>

#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"
#include "tests/prefill_worker/prefill_fixture.h"
#include "tests/support/patience.h"

namespace cachalot {
namespace {

using testing::Eventually;
using testing::kPatience;

class PrefillRowsTest : public testing::PrefillFixture {
 protected:
  static constexpr int64_t kTokens = 1500;  // 3 MB of logits
  static constexpr int64_t kWindow = 512 << 10;

  PrefillRowsTest() {
    options_.service.debug_logits = true;
    options_.service.unread_row_bytes = kWindow;
    options_.service.write = kPatience * 10;
  }
  /// To a caller whose connection keeps only 64 KiB of a stream that is not read, as a busy one does.
  void ServeSmallWindow() {
    Serve();
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    stub_ = v1::Prefill::NewStub(grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                                           grpc::InsecureChannelCredentials(), arguments));
  }
  SequenceState Rows() const {
    SequenceState state = m_.State(m_.Prompt(kTokens, 1), 1);
    state.want_logits = true;
    return state;
  }
  double Unread() const { return Metric("cachalot_prefill_unread_row_bytes"); }
  /// More than half of the window is full: no chunk is taken of it.
  bool EventuallyHeldBack() {
    return Eventually([&] { return Unread() > kWindow / 2; });
  }
  /// Reads to the end.
  static std::vector<float> ReadLogits(testing::PrefillCaller& call) {
    std::vector<float> values;
    auto event = call.NextNews();
    for (; event && event->has_logits(); event = call.NextNews()) {
      EXPECT_EQ(event->logits().first_row(), static_cast<int64_t>(values.size() / 512));
      const std::string& bytes = event->logits().values();
      const size_t had = values.size();
      values.resize(had + bytes.size() / sizeof(float));
      std::memcpy(values.data() + had, bytes.data(), bytes.size());
    }
    EXPECT_TRUE(event && event->has_first_token());
    EXPECT_TRUE(call.Finish().ok());
    return values;
  }
};

TEST_F(PrefillRowsTest, OfASlowReaderStayInBoundsWhileOthersFinish) {
  ServeSmallWindow();
  auto slow = Call(Rows());
  ASSERT_TRUE(EventuallyHeldBack());
  // They come behind it, so that they would end behind it if it went on.
  for (int seed = 2; seed < 5; ++seed) {
    EXPECT_TRUE(Call(m_.State(m_.Prompt(300, seed)))->Finish().ok());
    EXPECT_LE(Unread(), kWindow);
  }
  EXPECT_TRUE(Call(m_.State(m_.Prompt(kTokens, 1)))->Finish().ok()) << "the same prompt";
  EXPECT_LE(Unread(), kWindow);
  EXPECT_GT(Describe().load().waiting_tokens(), kTokens / 2) << "it is held back";
  const std::vector<float> late = ReadLogits(*slow);
  EXPECT_EQ(late.size(), static_cast<size_t>(kTokens * 512));
  EXPECT_TRUE(EventuallyNothingIsLeft());
  EXPECT_EQ(Unread(), 0);
  EXPECT_TRUE(testing::SameBits(ReadLogits(*Call(Rows())), late));
}

TEST_F(PrefillRowsTest, OfACallerThatGoesAwayAreFreed) {
  ServeSmallWindow();
  auto slow = Call(Rows());
  ASSERT_TRUE(EventuallyHeldBack());
  EXPECT_GT(server_->pools().used_blocks(), 0);
  slow->Cancel();
  EXPECT_TRUE(EventuallyNothingIsLeft());
  EXPECT_TRUE(Eventually([&] { return Unread() == 0; }));
}

TEST_F(PrefillRowsTest, OfACallerThatNeverReadsEndWithItsPatience) {
  options_.service.write = std::chrono::milliseconds(50);
  ServeSmallWindow();
  auto slow = Call(Rows());
  EXPECT_TRUE(Eventually([&] { return Metric("cachalot_prefill_failed_requests_total") == 1; }));
  EXPECT_TRUE(EventuallyNothingIsLeft());
  EXPECT_TRUE(Eventually([&] { return Unread() == 0; }));
}

TEST_F(PrefillRowsTest, DoNotHoldUpADrain) {
  options_.service.drain_write = std::chrono::milliseconds(50);
  ServeSmallWindow();
  auto slow = Call(Rows());
  ASSERT_TRUE(EventuallyHeldBack());
  EXPECT_TRUE(server_->Drain(kPatience));
  EXPECT_TRUE(EventuallyNothingIsLeft());
  EXPECT_FALSE(slow->Finish().ok());
}

TEST_F(PrefillRowsTest, DoNotHoldUpAShutdown) {
  ServeSmallWindow();
  auto slow = Call(Rows());
  ASSERT_TRUE(EventuallyHeldBack());
  server_->Shutdown();
  EXPECT_FALSE(slow->Finish().ok());
  EXPECT_EQ(server_->pools().used_blocks(), 0);
}

}  // namespace
}  // namespace cachalot

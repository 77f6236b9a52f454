#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <numeric>

#include "common/base/address.h"
#include "common/base/bytes.h"
#include "common/base/ids.h"
#include "common/base/json_depth.h"
#include "common/base/seconds_text.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/base/time.h"
#include "common/tensor/dtype.h"

namespace cachalot {
namespace {

TEST(ThreadPool, CoversEveryIndexOnceForAnyThreadCount) {
  for (int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    for (int count : {0, 1, 2, 5, 64, 1001}) {
      std::vector<std::atomic<int>> seen(count);
      pool.ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) seen[i].fetch_add(1);
      });
      for (auto& times : seen) EXPECT_EQ(times.load(), 1) << threads << " threads, " << count << " items";
    }
  }
}

TEST(ByteReader, RefusesToReadPastTheEnd) {
  const std::byte bytes[5] = {std::byte{1}, {}, {}, {}, std::byte{9}};
  ByteReader reader(bytes);
  EXPECT_EQ(reader.Read<uint32_t>(), 1u);
  EXPECT_TRUE(reader.ok());
  EXPECT_EQ(reader.Read<uint16_t>(), 0u);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.Read<uint8_t>(), 0u);
}

TEST(Status, AnnotateKeepsTheCode) {
  const Status status = Annotate(NotFound("x"), "y");
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(StatusMessage(status), "y: x");
}

TEST(JsonDepth, CountsWhatIsOpenAtOnceOutsideOfStrings) {
  EXPECT_FALSE(JsonIsDeeperThan("", 0));
  EXPECT_FALSE(JsonIsDeeperThan("[{}, [], {}]", 2));
  EXPECT_TRUE(JsonIsDeeperThan("[{}, [], {}]", 1));
  EXPECT_TRUE(JsonIsDeeperThan(R"({"a": [{"b": 1}]})", 2));
  EXPECT_FALSE(JsonIsDeeperThan(R"(["[[{", "\"[[", "\\", "]"])", 1));
  EXPECT_TRUE(JsonIsDeeperThan(R"(["\\", [2]])", 1)) << "the string ends behind its backslash";
}

TEST(Ids, AreNotRepeated) { EXPECT_NE(RandomId(), RandomId()); }

TEST(SecondsText, IsToTheMillisecondAndNoLongerThanNeedBe) {
  using std::chrono::microseconds, std::chrono::milliseconds, std::chrono::seconds;
  EXPECT_EQ(SecondsText(seconds(8)), "8 s");
  EXPECT_EQ(SecondsText(seconds(100)), "100 s");
  EXPECT_EQ(SecondsText(milliseconds(250)), "0.25 s");
  EXPECT_EQ(SecondsText(milliseconds(1003)), "1.003 s");
  EXPECT_EQ(SecondsText(microseconds(1499'600)), "1.5 s");
  EXPECT_EQ(SecondsText(Duration::zero()), "0 s");
}

TEST(DType, DecodesTheGoldenValues) {  // model.md 12.4
  EXPECT_EQ(kE4M3ToFloat[0x01], std::ldexp(1.f, -9));
  EXPECT_EQ(kE4M3ToFloat[0x08], std::ldexp(1.f, -6));
  EXPECT_EQ(kE4M3ToFloat[0x38], 1.f);
  EXPECT_EQ(kE4M3ToFloat[0x7E], 448.f);
  EXPECT_EQ(kE4M3ToFloat[0x81], -std::ldexp(1.f, -9));
  EXPECT_TRUE(std::isnan(kE4M3ToFloat[0x7F]) && std::isnan(kE4M3ToFloat[0xFF]));
  EXPECT_EQ(E8M0ToFloat(0), std::ldexp(1.f, -127));
  EXPECT_EQ(E8M0ToFloat(127), 1.f);
  EXPECT_EQ(E8M0ToFloat(254), std::ldexp(1.f, 127));
  EXPECT_TRUE(std::isnan(E8M0ToFloat(255)));
  EXPECT_EQ(kE2M1ToFloat[15], -6.f);
  EXPECT_EQ(F16ToFloat(0x3C00), 1.f);
  EXPECT_EQ(F16ToFloat(0x0001), std::ldexp(1.f, -24));
}

TEST(ListenAddress, IsHostAndPortOrAPath) {
  const auto v4 = ParseListenAddress("127.0.0.1:8000");
  ASSERT_TRUE(v4.ok()) << v4.status();
  EXPECT_EQ(v4->host, "127.0.0.1");
  EXPECT_EQ(v4->port, 8000);
  EXPECT_FALSE(v4->is_unix());
  EXPECT_EQ(ParseListenAddress("[::1]:0")->host, "::1");
  EXPECT_EQ(ParseListenAddress("unix:/run/x")->path, "/run/x");
  EXPECT_EQ(ParseListenAddress("unix:///run/x")->path, "/run/x");
  EXPECT_EQ(ParseListenAddress("unix:x")->path, "x");
  for (const char* wrong : {"", ":", "host", "host:", ":80", "host:-1", "host:65536", "host:8o", "host:80 ", "::1:80",
                            "unix:", "unix://", "http://host:80"}) {
    const Status status = ParseListenAddress(wrong).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << wrong;
  }
}

TEST(ListenAddress, BoundOnesNameThePort) {
  EXPECT_EQ(BoundAddress("127.0.0.1:0", 7), "127.0.0.1:7");
  EXPECT_EQ(BoundAddress("[::1]:0", 7), "[::1]:7");
  EXPECT_EQ(BoundAddress("unix:/run/x", 0), "unix:/run/x");
}

}  // namespace
}  // namespace cachalot

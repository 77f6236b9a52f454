// Flags of the router that decide what it takes on.

#include "router/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cachalot {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

class RouterConfigTest : public testing::Test {
 protected:
  RouterConfigTest() { AddFlags(schema_, &config_); }
  Status Parse(std::vector<std::string> words) {
    words.insert(words.end(), {"--prefill=a:1", "--decode=b:1"});
    return schema_.Parse(words).status();
  }
  RouterConfig config_;
  ConfigSchema schema_{"cachalot-router", ""};
};

TEST_F(RouterConfigTest, LimitsAreFlags) {
  const FlowOptions defaults;
  ASSERT_TRUE(Parse({}).ok());
  EXPECT_EQ(config_.flow.max_requests, defaults.max_requests);
  EXPECT_EQ(config_.flow.placement_wait, defaults.placement_wait);
  EXPECT_EQ(config_.flow.resume_patience, defaults.resume_patience);
  ASSERT_TRUE(Parse({"--max-requests=3", "--placement-wait-ms=20", "--resume-patience-ms=30"}).ok());
  EXPECT_EQ(config_.flow.max_requests, 3);
  EXPECT_EQ(config_.flow.placement_wait, milliseconds(20));
  EXPECT_EQ(config_.flow.resume_patience, milliseconds(30));
}

TEST_F(RouterConfigTest, WrongValuesAreNamed) {
  const struct {
    const char *word, *says;
  } cases[] = {{"--max-requests=0", "--max-requests: expected 1 to"},
               {"--placement-wait-ms=0", "--placement-wait-ms: expected 1 or more, got 0"},
               {"--resume-patience-ms=0.5", "--resume-patience-ms: expected 1 or more, got 0.5"},
               {"--dns-server=nowhere", "--dns-server: DNS server \"nowhere\": wanted IP:PORT"},
               {"--metrics-listen=unix:/x", "--metrics-listen: expected host:port"},
               {"--listen=8000", "--listen: expected host:port or unix:path, got \"8000\""}};
  for (const auto& bad : cases) EXPECT_THAT(StatusMessage(Parse({bad.word})), HasSubstr(bad.says));
}

}  // namespace
}  // namespace cachalot

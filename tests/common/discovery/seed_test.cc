#include "common/discovery/seed.h"

#include <gmock/gmock.h>

namespace cachalot::testing {
namespace {

TEST(Seed, AnAddressStaysWhatItIs) {
  for (const char* text : {"127.0.0.1:80", "host:1", "[::1]:80", "unix:/tmp/x", "ipv4:10.0.0.1:80,10.0.0.2:80"}) {
    const auto seed = ParseSeed(text);
    ASSERT_TRUE(seed.ok()) << seed.status();
    EXPECT_FALSE(seed->dns());
    EXPECT_EQ(seed->address, text);
  }
}

TEST(Seed, AName) {
  const auto seed = ParseSeed("dns:prefill.cachalot.svc.cluster.local:7300");
  ASSERT_TRUE(seed.ok()) << seed.status();
  EXPECT_TRUE(seed->dns());
  EXPECT_EQ(seed->name, "prefill.cachalot.svc.cluster.local");
  EXPECT_EQ(seed->port, 7300);
  EXPECT_EQ(seed->text, "dns:prefill.cachalot.svc.cluster.local:7300");
}

TEST(Seed, WhatIsNoNameWithAPortIsRefused) {
  for (const char* text : {"dns:", "dns:name", "dns::80", "dns:name:", "dns:name:0", "dns:name:65536", "dns:name:8x",
                           "dns:name:-1", "dns:///name:80", "dns:a b:80", "dns:[::1]:80"}) {
    const auto seed = ParseSeed(text);
    EXPECT_EQ(seed.status().code(), StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(StatusMessage(seed.status()), ::testing::HasSubstr("wanted dns:NAME:PORT")) << text;
  }
  EXPECT_FALSE(ParseSeeds({"a:1", "dns:x"}).ok());
  EXPECT_EQ(ParseSeeds({"a:1", "dns:x:2"})->size(), 2u);
}

TEST(Seed, WhatIsNoAddressIsRefused) {
  for (const char* text : {"", "host", "host:", ":80", "host:0", "host:65536", "host:8x", "::1:80", "[::1]", "a b:80",
                           "http://host:80", "https://host"}) {
    const auto seed = ParseSeed(text);
    EXPECT_EQ(seed.status().code(), StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(StatusMessage(seed.status()), ::testing::HasSubstr("wanted HOST:PORT")) << text;
  }
}

TEST(Seed, AddressesOfBothFamilies) {
  EXPECT_EQ(JoinHostPort("10.0.0.7", 7300), "10.0.0.7:7300");
  EXPECT_EQ(JoinHostPort("fd00::7", 7300), "[fd00::7]:7300");
}

}  // namespace
}  // namespace cachalot::testing

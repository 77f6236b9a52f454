#include "common/cluster/compat.h"

#include <gmock/gmock.h>

#include <cstdint>
#include <functional>
#include <iterator>
#include <string>

namespace cachalot {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kVersion = 7;

v1::Compat Ours() {
  v1::Compat compat;
  compat.set_weights("abc");
  compat.set_protocol(kVersion);
  compat.set_state_format(1);
  compat.set_mode("exact");
  compat.set_kv_layout("layout");
  compat.set_reduction_groups(8);
  compat.set_numerics("ref");
  return compat;
}

TEST(Compat, NeighbouringVersionsOfTheProtocolWorkTogether) {
  v1::Compat theirs = Ours();
  for (uint32_t version : {kVersion - 1, kVersion, kVersion + 1}) {
    theirs.set_protocol(version);
    EXPECT_TRUE(CheckCompat(Ours(), theirs, "it").ok()) << version;
    EXPECT_TRUE(CheckCompat(theirs, Ours(), "it").ok()) << version;
  }
}

TEST(Compat, OtherVersionsOfTheProtocolAreRefusedByBoth) {
  v1::Compat theirs = Ours();
  for (uint32_t version : {0u, kVersion - 2, kVersion + 2, UINT32_MAX}) {
    theirs.set_protocol(version);
    const Status here = CheckCompat(Ours(), theirs, "decode worker A");
    EXPECT_EQ(here.code(), StatusCode::kFailedPrecondition) << version;
    EXPECT_THAT(StatusMessage(here), HasSubstr("decode worker A is not compatible: protocol is \"" +
                                               std::to_string(version) + "\" there, \"7\" here"));
    const Status there = CheckCompat(theirs, Ours(), "it");
    EXPECT_EQ(there.code(), StatusCode::kFailedPrecondition) << version;
    EXPECT_THAT(StatusMessage(there), HasSubstr("\"7\" there, \"" + std::to_string(version) + "\" here"));
  }
}

TEST(Compat, EveryOtherFieldMustBeEqual) {
  const struct {
    const char* field;
    std::function<void(v1::Compat&)> change;
    const char* theirs;
  } cases[] = {
      {"weights", [](v1::Compat& c) { c.set_weights("abd"); }, "abd"},
      {"state_format", [](v1::Compat& c) { c.set_state_format(2); }, "2"},
      {"mode", [](v1::Compat& c) { c.set_mode("bf16"); }, "bf16"},
      {"kv_layout", [](v1::Compat& c) { c.set_kv_layout(""); }, ""},
      {"reduction_groups", [](v1::Compat& c) { c.set_reduction_groups(4); }, "4"},
      {"numerics", [](v1::Compat& c) { c.set_numerics("cpu"); }, "cpu"},
  };
  // Each once, and no field without a case but the protocol.
  ASSERT_EQ(std::size(cases) + 1, static_cast<size_t>(v1::Compat::descriptor()->field_count()));
  for (const auto& c : cases) {
    v1::Compat theirs = Ours();
    c.change(theirs);
    const Status status = CheckCompat(Ours(), theirs, "it");
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << c.field;
    EXPECT_THAT(StatusMessage(status), HasSubstr(std::string("it is not compatible: ") + c.field + " is \"" +
                                                 c.theirs + "\" there, "));
    EXPECT_EQ(CheckCompat(theirs, Ours(), "it").code(), StatusCode::kFailedPrecondition) << c.field;
  }
}

TEST(Compat, TheFirstFieldThatDiffersIsNamed) {
  v1::Compat theirs = Ours();
  theirs.set_numerics("cpu");
  theirs.set_protocol(kVersion + 1);  // which fits
  theirs.set_mode("bf16");
  EXPECT_THAT(StatusMessage(CheckCompat(Ours(), theirs, "it")),
              HasSubstr("mode is \"bf16\" there, \"exact\" here"));
  theirs.set_protocol(kVersion + 2);
  EXPECT_THAT(StatusMessage(CheckCompat(Ours(), theirs, "it")), HasSubstr("protocol is"));
}

}  // namespace
}  // namespace cachalot

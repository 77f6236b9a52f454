#include "router/frontend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/cluster/assets.h"
#include "tests/support/oracle.h"
#include "tests/support/verses.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;

v1::GetModelAssetsResponse Tiny() { return *ReadModelAssets(CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny"); }
v1::GetModelAssetsResponse Demo() { return *ReadModelAssets(DemoDirectory()); }

TEST(OwnFilesTest, OfTheWorkersModelAreTaken) {
  EXPECT_TRUE(CheckOwnFiles(Demo(), Demo()).ok());
  v1::GetModelAssetsResponse spaced = Demo();
  spaced.set_config_json(" " + spaced.config_json() + "\n");
  EXPECT_TRUE(CheckOwnFiles(spaced, Demo()).ok()) << "what it says counts, not how it is written";
  v1::GetModelAssetsResponse without = Demo();
  without.clear_tokenizer_json();
  EXPECT_TRUE(CheckOwnFiles(Demo(), without).ok()) << "a tokenizer where the workers have none";
}

TEST(OwnFilesTest, OfAnotherModelAreRefusedByName) {
  const auto expect_refused = [](const v1::GetModelAssetsResponse& own, const v1::GetModelAssetsResponse& workers,
                                 const std::string& file) {
    const Status status = CheckOwnFiles(own, workers);
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr(own.model() + "/" + file + " is not the " + file));
  };
  expect_refused(Tiny(), Demo(), "config.json");
  v1::GetModelAssetsResponse other = Demo();
  other.mutable_tokenizer_json()->append("\n");
  expect_refused(other, Demo(), "tokenizer.json");
  other.clear_tokenizer_json();
  expect_refused(other, Demo(), "tokenizer.json");
}

}  // namespace
}  // namespace cachalot::testing

#include "common/cluster/assets.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "tests/common/loader/tensor_files.h"

namespace cachalot {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::TempDir;
using testing::WriteText;

TEST(ModelAssets, AreTheFilesAsTheyAre) {
  TempDir directory;
  WriteText(directory / "config.json", "{} ");
  WriteText(directory / "tokenizer.json", "{\n}");
  const auto assets = ReadModelAssets(directory.path() + "/");
  ASSERT_TRUE(assets.ok()) << StatusMessage(assets.status());
  EXPECT_EQ(assets->model(), std::filesystem::path(directory.path()).filename().string());
  EXPECT_EQ(assets->config_json(), "{} ");
  EXPECT_EQ(assets->tokenizer_json(), "{\n}");
}

TEST(ModelAssets, ATokenizerMayBeMissingButNotBroken) {
  TempDir directory;
  EXPECT_EQ(ReadModelAssets(directory.path()).status().code(), StatusCode::kNotFound) << "without a config";
  WriteText(directory / "config.json", "{}");
  const auto without = ReadModelAssets(directory.path());
  ASSERT_TRUE(without.ok()) << StatusMessage(without.status());
  EXPECT_EQ(without->tokenizer_json(), "");

  const std::string tokenizer = directory / "tokenizer.json";
  const auto expect_refused = [&](const std::string& got) {
    const Status status = ReadModelAssets(directory.path()).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << got;
    EXPECT_THAT(StatusMessage(status), AllOf(HasSubstr(tokenizer), HasSubstr("got " + got)));
    std::filesystem::remove(tokenizer);
  };
  WriteText(tokenizer, "");
  expect_refused("an empty one");
  std::filesystem::create_directory(tokenizer);
  expect_refused("a directory");
  std::filesystem::create_symlink("nowhere", tokenizer);  // its permissions would not stop root
  expect_refused("one that cannot be read");
}

}  // namespace
}  // namespace cachalot

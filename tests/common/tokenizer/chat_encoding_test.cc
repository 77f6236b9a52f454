// Fixed texts out of a checkpoint's encoding file: generations, hashes, what is missing.

#include "common/tokenizer/chat_encoding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/common/tokenizer/chat_texts.h"

namespace cachalot {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr StatusCode kPrecondition = StatusCode::kFailedPrecondition;

std::string Error(const Status& status, StatusCode code = StatusCode::kInvalidArgument) {
  EXPECT_EQ(status.code(), code) << StatusMessage(status);
  return StatusMessage(status);
}

StatusOr<ChatEncoding> FromSource(const std::string& source, const ChatTextHashes& hashes = MadeUpHashes()) {
  return ChatEncoding::FromSource(source, "dir/encoding_dsv4.py", Sha256Hex, hashes);
}

TEST(ChatEncodingTest, MaxMeansTheTextOfTheCheckpoint) {
  const ChatEncoding preview = MadeUpEncoding("preview"), leveled = MadeUpEncoding("leveled");
  EXPECT_EQ(preview.generation(), ChatEncoding::Generation::kPreview);
  EXPECT_EQ(leveled.generation(), ChatEncoding::Generation::kLeveled);
  EXPECT_EQ(*preview.EffortPrefix(""), "");
  EXPECT_EQ(*preview.EffortPrefix("high"), "");
  EXPECT_EQ(*preview.EffortPrefix("max"), "abs effort\n\n");
  EXPECT_EQ(*leveled.EffortPrefix(""), "");
  EXPECT_EQ(*leveled.EffortPrefix("low"), "");
  EXPECT_EQ(*leveled.EffortPrefix("high"), "abs effort\n\n");
  EXPECT_EQ(*leveled.EffortPrefix("max"), "beyond — effort\n\n");
  EXPECT_THAT(Error(preview.CheckEffort("low")), AllOf(HasSubstr("'low'"), HasSubstr("'high', 'max'")));
  EXPECT_THAT(Error(leveled.EffortPrefix("medium").status()), HasSubstr("'low', 'high', 'max'"));
}

TEST(ChatEncodingTest, PlaceholdersAreFilledAndMarksStayMarks) {
  ChatPrompt prompt;
  ASSERT_TRUE(MadeUpEncoding("preview").RenderTools("{\"a\": \"{b}\"}", &prompt).ok());
  EXPECT_EQ(prompt.AsText(), "T ｜DSML｜ <think>..</think> {x}\n{\"a\": \"{b}\"}\nend");
  std::vector<std::string> marks;
  for (const ChatPrompt::Piece& piece : prompt.pieces()) {
    if (piece.mark) marks.push_back(piece.text);
  }
  EXPECT_THAT(marks, testing::ElementsAre("｜DSML｜", "<think>", "</think>"));
  ChatPrompt format;
  ASSERT_TRUE(MadeUpEncoding("preview").RenderResponseFormat("{}", &format).ok());
  EXPECT_EQ(format.AsText(), "## R\n{}");
}

TEST(ChatEncodingTest, AMissingFileIsNamedByWhatNeedsIt) {
  const std::string directory = testing::TempDir() + "/no_encoding";
  std::filesystem::create_directories(directory);
  const auto encoding = ChatEncoding::Load(directory, Sha256Hex);
  ASSERT_TRUE(encoding.ok());
  EXPECT_EQ(encoding->generation(), ChatEncoding::Generation::kUnknown);
  EXPECT_EQ(*encoding->EffortPrefix(""), "");
  EXPECT_EQ(*encoding->EffortPrefix("low"), "");
  ChatPrompt prompt;
  for (const Status& status :
       {encoding->RenderTools("", &prompt), encoding->RenderResponseFormat("{}", &prompt),
        encoding->EffortPrefix("max").status(), encoding->EffortPrefix("high").status()}) {
    EXPECT_THAT(Error(status, kPrecondition),
                AllOf(HasSubstr("no_encoding/encoding/encoding_dsv4.py"), HasSubstr("missing")));
  }
  Error(encoding->CheckEffort("most"));
}

TEST(ChatEncodingTest, AnUnknownTextIsAnErrorOnceItIsNeeded) {
  // The released hashes: none of the made-up texts has them.
  const auto encoding = FromSource(ChatCases()["encoders"]["leveled"], ChatTextHashes::Released());
  ASSERT_TRUE(encoding.ok());
  ChatPrompt prompt;
  EXPECT_TRUE(encoding->EffortPrefix("low").ok());
  EXPECT_THAT(Error(encoding->RenderTools("", &prompt), kPrecondition),
              AllOf(HasSubstr("dir/encoding_dsv4.py"), HasSubstr("TOOLS_TEMPLATE"),
                    HasSubstr(MadeUpHashes().tools), HasSubstr(ChatTextHashes::Released().tools)));
  EXPECT_THAT(Error(encoding->RenderResponseFormat("", &prompt), kPrecondition),
              HasSubstr("response_format_template"));
  EXPECT_THAT(Error(encoding->EffortPrefix("max").status(), kPrecondition),
              HasSubstr("REASONING_EFFORT_PROMPTS[\"max\"]"));
  const auto bare = FromSource("REASONING_EFFORT_MAX = 'x'");
  EXPECT_THAT(Error(bare->RenderTools("", &prompt), kPrecondition), HasSubstr("it has no TOOLS_TEMPLATE"));
}

TEST(ChatEncodingTest, BadPlaceholders) {
  for (const char* text : {"{unknown}", "{", "}", "{}", "{schema:>9}"}) {
    ChatTextHashes hashes = MadeUpHashes();
    hashes.tools = hashes.response_format = Sha256Hex(text);
    const std::string quoted = "'" + std::string(text) + "'";
    const auto encoding = FromSource(
        "REASONING_EFFORT_MAX = ''\nTOOLS_TEMPLATE = " + quoted + "\nresponse_format_template = " + quoted,
        hashes);
    ChatPrompt prompt;
    EXPECT_THAT(Error(encoding->RenderTools("", &prompt), kPrecondition), HasSubstr("placeholder"));
    EXPECT_THAT(Error(encoding->RenderResponseFormat("", &prompt), kPrecondition), HasSubstr("placeholder"));
  }
}

TEST(ChatEncodingTest, FilesThatAreNoEncoder) {
  EXPECT_THAT(Error(FromSource("print('hello')").status()), HasSubstr("REASONING_EFFORT_PROMPTS"));
  EXPECT_THAT(Error(FromSource("").status()), HasSubstr("dir/encoding_dsv4.py"));
  EXPECT_THAT(Error(FromSource("X = '\xFF'").status()), HasSubstr("UTF-8"));
  EXPECT_THAT(Error(FromSource(std::string(2 << 20, '\n')).status()), HasSubstr("1 MiB"));
  EXPECT_THAT(
      Error(FromSource("REASONING_EFFORT_PROMPTS = {'low': ''}\nDEFAULT_REASONING_EFFORT = 'mid'").status()),
      HasSubstr("'mid'"));
}

}  // namespace
}  // namespace cachalot

// `cachalot inspect` as a user runs it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>

#include "tests/common/model/flash_table.h"

namespace cachalot {
namespace {

using Json = nlohmann::json;
using testing::FlashTable;
using ::testing::HasSubstr;
using testing::Source;
using testing::TempDir;

struct Output {
  std::string text;  // stdout and stderr
  int code = -1;
};

Output RunInspect(const std::string& arguments) {
  const std::string command = std::string(CACHALOT_BINARY_DIR) + "/cachalot inspect " + arguments + " 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  Output output;
  std::array<char, 4096> buffer;
  while (const size_t count = fread(buffer.data(), 1, buffer.size(), pipe))
    output.text.append(buffer.data(), count);
  const int status = pclose(pipe);
  output.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return output;
}

Json InspectJson(const std::string& arguments) {
  const Output output = RunInspect(arguments + " --json");
  EXPECT_EQ(output.code, 0) << output.text;
  Json json = Json::parse(output.text, nullptr, /*allow_exceptions=*/false);
  EXPECT_TRUE(json.is_object()) << output.text;
  return json;
}

TEST(InspectCommandTest, Demo) {
  const Json json = InspectJson(Source("models/demo") + " --shards 4 --context 1024");
  EXPECT_EQ(json["tensors"], 9426);
  EXPECT_EQ(json["parameters"], 42123065);
  EXPECT_EQ(json["files"], 3);
  EXPECT_EQ(json["names"], "released");
  EXPECT_EQ(json["roles"]["expert_shards"], Json({5013504, 5013504, 5013504, 5013504}));
  EXPECT_EQ(json["roles"]["embedded"], 28342228);
  EXPECT_EQ(json["kv_fp32"]["bytes_per_token"], 196);
  EXPECT_EQ(json["kv_bf16"]["bytes_per_token"], 98);
  EXPECT_EQ(json["config"]["compress_ratios"], Json({0, 0, 4, 128, 4, 128}));
  EXPECT_EQ(json["context"], 1024);
  EXPECT_EQ(json["loads"], true);
  EXPECT_TRUE(json["warnings"].empty()) << json["warnings"];
}

TEST(InspectCommandTest, OracleCases) {
  const Json tiny = InspectJson(Source("tests/golden/oracle/tiny")),
             flash = InspectJson(Source("tests/golden/oracle/flash-fp4-fp8"));
  EXPECT_EQ(tiny["names"], "transformers save_pretrained");
  EXPECT_EQ(tiny["tensors"], 448);
  EXPECT_EQ(tiny["context"], 4096);  // max_position_embeddings
  EXPECT_THAT(tiny["warnings"].dump(), HasSubstr("no tokenizer.json"));
  EXPECT_EQ(flash["names"], "released");
  EXPECT_EQ(flash["groups"]["routed_experts"]["dtype_bytes"], Json({{"I8", 3145728}, {"F8_E8M0", 196608}}));
}

TEST(InspectCommandTest, TheReleasedFlashTable) {
  TempDir directory;
  FlashTable::WriteSparse(directory);
  const Json json = InspectJson(directory.path());
  EXPECT_EQ(json["tensors"], 69187);
  EXPECT_EQ(json["bytes"], 159609485896);
  EXPECT_EQ(json["parameters"], 284332240471);
  EXPECT_EQ(json["groups"]["mtp"]["parameters"], 6610048891);
  EXPECT_EQ(json["draft"], "mtp");
  EXPECT_EQ(json["files"], 46);
  EXPECT_EQ(json["context"], 1048576);
  EXPECT_EQ(json["kv_bf16"]["total_bytes_minimal"], 7220269056);
  EXPECT_EQ(json["kv_bf16"]["total_bytes"], 7232045056);
  EXPECT_EQ(json["loads"], true);
  const Output text = RunInspect(directory.path());
  EXPECT_EQ(text.code, 0);
  EXPECT_THAT(text.text, HasSubstr("2 window, 21 CSA, 20 HCA"));
  EXPECT_THAT(text.text, HasSubstr("284332240471 parameters"));
  EXPECT_THAT(text.text, HasSubstr("148.65 GiB"));
}

TEST(InspectCommandTest, WarnsAndRefuses) {
  TempDir directory;
  auto tensors = testing::ReadTensors(Source("tests/golden/oracle/tiny/model.safetensors"));
  tensors.erase("model.norm.weight");
  tensors["surprise"] = {"F32", {1}, std::string(4, '\0')};
  tensors["mtp.0.markov_head.w1.weight"] = {"F32", {1}, std::string(4, '\0')};
  testing::WriteTensors(directory / "model.safetensors", tensors);
  testing::WriteText(directory / "config.json",
                     testing::ReadText(Source("tests/golden/oracle/tiny/config.json")));
  testing::WriteText(directory / "tokenizer.json", "");
  const Output output = RunInspect(directory.path());
  EXPECT_EQ(output.code, 0);
  EXPECT_THAT(output.text, HasSubstr("does not load: " + directory.path() + ": tensor 'norm.weight'"));
  EXPECT_THAT(output.text, HasSubstr("does not load: " + directory / "tokenizer.json" + ": wanted a file"));
  EXPECT_THAT(output.text, HasSubstr("1 unexpected tensors, not used: surprise"));
  EXPECT_THAT(output.text, HasSubstr("DSpark draft: ignored"));
  EXPECT_EQ(InspectJson(directory.path())["loads"], false);

  EXPECT_EQ(RunInspect("").code, 2);
  EXPECT_EQ(RunInspect(directory.path() + " --shards 3").code, 2);
  EXPECT_EQ(RunInspect(directory.path() + "/nowhere").code, 1);
  testing::WriteText(directory / "model.safetensors", "broken");
  const Output broken = RunInspect(directory.path());
  EXPECT_EQ(broken.code, 1);
  EXPECT_THAT(broken.text, HasSubstr("model.safetensors"));
}

}  // namespace
}  // namespace cachalot

// Broken checkpoints, row by row as in docs/errors.md: the exit code, and what the message names.

#include <gmock/gmock.h>

#include "tests/support/broken_checkpoint.h"
#include "tests/support/patience.h"
#include "tests/support/programs.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

constexpr Duration kSettled = std::chrono::seconds(15) * kSlowdown;

struct BrokenCase {
  const char* name;
  int exit;
  std::function<void(BrokenCheckpoint&)> damage;
  Words says;
};

const BrokenCase kBroken[] = {
    {"data cut off",
     kFailed,
     [](auto& c) { c.Truncate(c.Size() - 100); },
     {"model.safetensors: tensor '", "wanted data_offsets inside [0, "}},
    {"header cut off",
     kFailed,
     [](auto& c) { c.Truncate(1000); },
     {"model.safetensors: header length: wanted at most the 992 bytes that follow, got "}},
    {"shorter than a header length",
     kFailed,
     [](auto& c) { c.Truncate(5); },
     {"wanted at least 8 bytes of header length, got a file of 5"}},
    {"oversized header",
     kFailed,
     [](auto& c) { c.HeaderLength(uint64_t{1} << 62); },
     {"header length: wanted at most 100000000, got 4611686018427387904"}},
    {"header is no JSON", kFailed, [](auto& c) { c.HeaderLength(100); }, {"header: not JSON"}},
    {"overlapping tensors",
     kFailed,
     [](auto& c) {
       c.Header([](Json& header) {
         header["model.embed_tokens.weight"]["data_offsets"] = header["head.weight"]["data_offsets"];
       });
     },
     {"tensor 'model.embed_tokens.weight': wanted to begin at or after byte ", "the end of 'head.weight'"}},
    {"bytes that do not fit the shape",
     kFailed,
     [](auto& c) { c.Header([](Json& header) {
                     header["head.weight"]["shape"] = {512, 63};
                   }); },
     {"tensor 'head.weight': wanted 64512 bytes for BF16[512, 63], got 65536"}},
    {"dtype that the format does not have",
     kFailed,
     [](auto& c) { c.Header([](Json& header) { header["head.weight"]["dtype"] = "B16"; }); },
     {"tensor 'head.weight': wanted a known dtype, got \"B16\""}},
    {"wrong dtype",
     kUsage,
     [](auto& c) { c.Header([](Json& h) { h["head.weight"]["dtype"] = "F16"; }); },
     {"tensor 'head.weight': wanted dtype F32 or BF16 or F8_E4M3 or I8, got F16"}},
    {"missing tensor",
     kUsage,
     [](auto& c) { c.Tensors([](auto& t) { t.erase("model.norm.weight"); }); },
     {"tensor 'norm.weight': wanted it in the checkpoint, got no such tensor"}},
    {"wrong shape",
     kUsage,
     [](auto& c) { c.Header([](Json& header) {
                     header["head.weight"]["shape"] = {64, 512};
                   }); },
     {"tensor 'head.weight': wanted shape [512, 64], got [64, 512] BF16"}},
    {"config of another hidden_size",
     kUsage,
     [](auto& c) { c.Config("hidden_size", 128); },
     {"model.safetensors: tensor '", "wanted shape [512, 128], got [512, 64] BF16"}},
    {"config of fewer experts",
     kUsage,
     [](auto& c) { c.Config("n_routed_experts", 8); },
     {"ffn.gate.weight': wanted shape [8, 64], got [16, 64] BF16"}},
    {"an indexer in a layer that has none",
     kUsage,
     [](auto& c) {
       c.Tensors([](auto& t) { t["layers.5.attn.indexer.wq_b.weight"] = {"F32", {1}, std::string(4, '\0')}; });
     },
     {"tensor 'layers.5.attn.indexer.wq_b.weight': wanted no indexer in a layer of ratio 128 of the config, got one"}},
    {"unknown model_type",
     kUsage,
     [](auto& c) { c.Config("model_type", "deepseek_v3"); },
     {"config.json: key 'model_type': wanted \"deepseek_v4\", got \"deepseek_v3\""}},
    {"config value out of range",
     kUsage,
     [](auto& c) { c.Config("head_dim", 0); },
     {"config.json: key 'head_dim': wanted an integer in [1, "}},
    {"config is no JSON",
     kUsage,
     [](auto& c) { WriteText(c / "config.json", "{\"vocab_size\": 5"); },
     {"config.json: wanted a JSON object, got text that is not JSON"}},
    {"no config",
     kFailed,
     [](auto& c) { std::filesystem::remove(c / "config.json"); },
     {"config.json: no such file"}},
    {"no weights",
     kFailed,
     [](auto& c) { std::filesystem::remove(c.weights()); },
     {"neither model.safetensors.index.json nor model.safetensors"}},
    {"missing shard of the index",
     kFailed,
     [](auto& c) {
       c.Index({{"weight_map", {{"head.weight", "model-00002-of-00002.safetensors"}}}});
     },
     {"model-00002-of-00002.safetensors: No such file"}},
    {"index that puts a tensor into the wrong shard",
     kFailed,
     [](auto& c) {
       c.Index({{"weight_map", {{"tail.weight", "model.safetensors"}}}});
     },
     {"tensor 'tail.weight': the index puts it here, the file lacks it"}},
    {"index without weight_map",
     kFailed,
     [](auto& c) { c.Index(Json::object()); },
     {"model.safetensors.index.json: wanted a JSON object with an object 'weight_map'"}},
    {"NaN in a norm",
     kUsage,
     [](auto& c) {
       c.Tensors([](auto& t) { t.at("model.norm.weight").bytes.replace(0, 4, "\0\0\xc0\x7f", 4); });
     },
     {"tensor 'model.norm.weight': wanted finite values, got nan"}},
};

TEST(Checkpoint, WhatIsBrokenIsNamedAndNothingServes) {
  for (const BrokenCase& broken : kBroken) {
    SCOPED_TRACE(broken.name);
    BrokenCheckpoint checkpoint;
    broken.damage(checkpoint);
    Words says = broken.says;
    says.push_back(checkpoint.path() + (broken.name == std::string("missing tensor") ? ": tensor" : ""));
    ExpectFails(Generate(checkpoint.path()), broken.exit, says);
    ExpectFails(Worker("cachalot-decode", checkpoint.path(), {"--experts", "local"}), broken.exit, says);
    EXPECT_THAT(RunningWith(checkpoint.path()), IsEmpty());
  }
}

TEST(Checkpoint, BrokenUnderUpTakesEveryProcessAlong) {
  BrokenCheckpoint checkpoint;
  checkpoint.Config("model_type", "deepseek_v3");
  ExpectFails({"cachalot", "up", "--model", checkpoint.path()}, kFailed,
              {"model_type", "cachalot-expert exited with code 2 before it was ready"});
  EXPECT_THAT(RunningWith(checkpoint.path()), IsEmpty());
}

TEST(Checkpoint, ATokenizerThatCannotBeReadIsNamed) {
  BrokenCheckpoint checkpoint;
  WriteText(checkpoint / "tokenizer.json", "{\"model\": ");
  const Words says = {"tokenizer.json: is not a readable tokenizer.json"};
  ExpectFails(Generate(checkpoint.path()), kUsage, says);
  ExpectFails({"cachalot", "serve", "--model", checkpoint.path(), "--listen", "127.0.0.1:0"}, kUsage, says);
  ExpectFails({"cachalot", "up", "--model", checkpoint.path(), "--expert-shards", "0"}, kFailed,
              {says[0], "cachalot-router exited with code 2 before it was ready"});

  // None is a model without text, but this is not none.
  const auto expect_refused = [&](const char* got) {
    const Words named = {checkpoint / "tokenizer.json", std::string("wanted a file with something in it, got ") + got};
    ExpectFails(Generate(checkpoint.path()), kUsage, named);
    ExpectFails(Worker("cachalot-decode", checkpoint.path(), {"--experts", "local"}), kUsage, named);
  };
  WriteText(checkpoint / "tokenizer.json", "");
  expect_refused("an empty one");
  std::filesystem::remove(checkpoint / "tokenizer.json");
  std::filesystem::create_directory(checkpoint / "tokenizer.json");
  expect_refused("a directory");
  EXPECT_THAT(RunningWith(checkpoint.path()), IsEmpty());
}

TEST(Checkpoint, ExtraTensorsAreWarnedOfAndNotUsed) {
  Programs programs;
  const Ended good = programs.Run(Generate(TinyCheckpoint()));
  BrokenCheckpoint checkpoint;
  checkpoint.Tensors([](auto& t) { t["tail.weight"] = t.at("head.weight"); });
  const Ended extra = programs.Run(Generate(checkpoint.path()));
  EXPECT_EQ(extra.exit.code, 0);
  EXPECT_EQ(extra.out, good.out);
  ExpectSays(extra.err, {checkpoint.path(), "1 unexpected tensors are not used: 'tail.weight'"});
}

TEST(Checkpoint, ADSparkDraftIsReportedAndIgnored) {
  Programs programs;
  const Ended good = programs.Run(Generate(TinyCheckpoint()));
  BrokenCheckpoint checkpoint;
  checkpoint.Config("dspark_target_layer_ids", {1, 3});
  checkpoint.Tensors([](auto& t) { t["mtp.0.markov_head.weight"] = t.at("head.weight"); });
  const Ended draft = programs.Run(Generate(checkpoint.path()));
  EXPECT_EQ(draft.exit.code, 0) << draft.err;
  EXPECT_EQ(draft.out, good.out);
  EXPECT_THAT(programs.Run({"cachalot", "inspect", checkpoint.path()}).out,
              HasSubstr("warning: mtp.* is a DSpark draft: ignored"));
  const auto worker = programs.Start(Worker("cachalot-decode", checkpoint.path(), {"--experts", "local"}));
  ASSERT_TRUE(worker);
  EXPECT_TRUE(programs.WaitLogged(*worker, "1 tensors of a DSpark draft are ignored"));
  EXPECT_TRUE(worker->WaitReady(std::chrono::steady_clock::now() + kSettled).ok());
  EXPECT_EQ(worker->Stop(kSettled).code, 0);
}

}  // namespace
}  // namespace cachalot::testing

#include "common/loader/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "common/loader/sha256.h"
#include "tests/common/loader/tensor_files.h"

namespace cachalot {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::StoredTensor;
using testing::StoredTensors;
using testing::TempDir;
using testing::WriteTensors;
using testing::WriteText;

StoredTensor Bytes(const std::string& bytes) { return {"U8", {static_cast<int64_t>(bytes.size())}, bytes}; }

std::string Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(Sha256Test, KnownAnswers) {  // FIPS 180-4 examples
  const auto digest = [](const std::string& text) {
    Sha256 hash;
    hash.Update(text);
    return hash.HexDigest();
  };
  EXPECT_EQ(digest(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(digest("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(digest(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  Sha256 pieces;
  for (int i = 0; i < 1000; ++i) pieces.Update(std::string(1000, 'a'));
  EXPECT_EQ(pieces.HexDigest(), digest(std::string(1000000, 'a')));
}

TEST(OfficialNameTest, EverySpellingOfTheSpec) {
  const std::pair<const char*, const char*> names[] = {
      {"embed.weight", "embed.weight"},
      {"model.embed_tokens.weight", "embed.weight"},
      {"model.norm.weight", "norm.weight"},
      {"lm_head.weight", "head.weight"},
      {"model.hc_head.hc_fn", "hc_head_fn"},
      {"hc_head_scale", "hc_head_scale"},
      {"model.layers.0.hc_attn_fn", "layers.0.hc_attn_fn"},
      {"model.layers.2.attn.norm.weight", "layers.2.attn.kv_norm.weight"},
      {"layers.2.attn.kv_norm.weight", "layers.2.attn.kv_norm.weight"},
      {"model.layers.2.attn_norm.weight", "layers.2.attn_norm.weight"},
      {"model.layers.2.attn.compressor.norm.weight", "layers.2.attn.compressor.norm.weight"},
      {"layers.2.attn.indexer.compressor.norm.weight", "layers.2.attn.indexer.compressor.norm.weight"},
      {"model.layers.1.self_attn.wq_a.weight_scale_inv", "layers.1.attn.wq_a.scale"},
      {"model.layers.1.mlp.experts.17.w2.weight", "layers.1.ffn.experts.17.w2.weight"},
      {"model.layers.9.mlp.gate.e_score_correction_bias", "layers.9.ffn.gate.bias"},
      {"mtp.0.attn.wkv.weight", "mtp.0.attn.wkv.weight"},
  };
  for (const auto& [stored, official] : names) EXPECT_EQ(OfficialTensorName(stored), official);
}

class CheckpointTest : public ::testing::Test {
 protected:
  void WriteIndex(const std::map<std::string, std::string>& weight_map) {
    WriteText(directory_ / "model.safetensors.index.json", nlohmann::json{{"weight_map", weight_map}}.dump());
  }
  std::string Refusal() {
    const auto checkpoint = Checkpoint::Open(directory_.path());
    if (checkpoint.ok()) return "";
    EXPECT_EQ(checkpoint.status().code(), StatusCode::kDataLoss);
    return StatusMessage(checkpoint.status());
  }
  std::string Fingerprint() {
    const auto checkpoint = Checkpoint::Open(directory_.path());
    EXPECT_TRUE(checkpoint.ok());
    Sha256 hash;
    EXPECT_TRUE((*checkpoint)->AddFingerprint(&hash).ok());
    return hash.HexDigest();
  }

  TempDir directory_;
};

TEST_F(CheckpointTest, MapsAShardAtItsFirstUse) {
  WriteTensors(directory_ / "a.safetensors",
               {{"model.embed_tokens.weight", Bytes("embed")}, {"old", Bytes("x")}});
  WriteTensors(directory_ / "b.safetensors", {{"norm.weight", Bytes("norms")}});
  WriteIndex({{"model.embed_tokens.weight", "a.safetensors"}, {"norm.weight", "b.safetensors"}});
  const auto opened = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(opened.ok()) << StatusMessage(opened.status());
  Checkpoint& checkpoint = **opened;
  EXPECT_THAT(checkpoint.OfficialNames(), ElementsAre("embed.weight", "norm.weight"));
  EXPECT_EQ(checkpoint.Find("old"), nullptr);  // the index does not name it
  EXPECT_EQ(checkpoint.MappedFiles(), 0);

  const Checkpoint::Tensor* tensor = checkpoint.Find("embed.weight");
  ASSERT_NE(tensor, nullptr);
  EXPECT_THAT(tensor->Where(), HasSubstr("a.safetensors: tensor 'model.embed_tokens.weight'"));
  const auto bytes = checkpoint.Map(*tensor, 1);
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ(Text(*bytes), "embed");
  EXPECT_EQ(checkpoint.MappedFiles(), 1);
  EXPECT_EQ(checkpoint.MappedBytes(), 5);
}

TEST_F(CheckpointTest, CopiesWhatIsMisaligned) {
  WriteTensors(directory_ / "model.safetensors", {{"a", Bytes("12345678")}, {"b", Bytes("abcdefgh")}},
               /*pad=*/3);
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok());
  const auto a = (*checkpoint)->Map(*(*checkpoint)->Find("a"), 8),
             b = (*checkpoint)->Map(*(*checkpoint)->Find("b"), 1);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a->data()) % 8, 0u);
  EXPECT_EQ(Text(*a), "12345678");
  EXPECT_EQ(Text(*b), "abcdefgh");
  EXPECT_EQ((*checkpoint)->AllocatedBytes(), 8);
}

TEST_F(CheckpointTest, RefusesAnIndexThatDoesNotFitItsShards) {
  WriteTensors(directory_ / "a.safetensors", {{"x", Bytes("x")}});
  WriteIndex({{"x", "a.safetensors"}, {"y", "a.safetensors"}, {"z", "a.safetensors"}});
  EXPECT_THAT(Refusal(),
              AllOf(HasSubstr("a.safetensors: tensor 'y'"), HasSubstr("the file lacks it (and 1 more)")));
  WriteIndex({{"x", "../a.safetensors"}});
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("tensor 'x'"), HasSubstr("without '/'")));
  WriteText(directory_ / "model.safetensors.index.json", R"({"weight_map":{"x":1}})");
  EXPECT_THAT(Refusal(), HasSubstr("tensor 'x'"));
  WriteText(directory_ / "model.safetensors.index.json",
            R"({"weight_map":{"x":)" + std::string(100'000, '[') + std::string(100'000, ']') + "}}");
  EXPECT_THAT(Refusal(), HasSubstr("index.json: wanted at most 64 levels of nesting"));
  WriteText(directory_ / "model.safetensors.index.json", R"({"weights":{}})");
  EXPECT_THAT(Refusal(), HasSubstr("weight_map"));
  WriteText(directory_ / "model.safetensors.index.json", "{");
  EXPECT_THAT(Refusal(), HasSubstr("weight_map"));
  WriteIndex({{"x", "b.safetensors"}});
  const auto missing = Checkpoint::Open(directory_.path());
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(StatusMessage(missing.status()), HasSubstr("b.safetensors"));
}

TEST_F(CheckpointTest, RefusesTwoTensorsOfOneName) {
  WriteTensors(directory_ / "model.safetensors",
               {{"embed.weight", Bytes("a")}, {"model.embed_tokens.weight", Bytes("b")}});
  EXPECT_THAT(Refusal(),
              AllOf(HasSubstr("tensor 'embed.weight'"), HasSubstr("tensor 'model.embed_tokens.weight'"),
                    HasSubstr("wanted one tensor for 'embed.weight', got two")));
}

TEST_F(CheckpointTest, TheIndexDecidesBetweenShards) {
  WriteTensors(directory_ / "a.safetensors", {{"x", Bytes("old")}, {"y", Bytes("y")}});
  WriteTensors(directory_ / "b.safetensors", {{"x", Bytes("new")}});
  WriteIndex({{"x", "b.safetensors"}, {"y", "a.safetensors"}});
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ(Text(*(*checkpoint)->Map(*(*checkpoint)->Find("x"), 1)), "new");
}

TEST_F(CheckpointTest, FingerprintSamplesBothEndsOfEveryTensor) {
  const auto write = [&](size_t at) {
    std::string body(1000, 'b');
    if (at < body.size()) body[at] = '!';
    WriteTensors(directory_ / "model.safetensors",
                 {{"t", Bytes(body)}, {"tiny", Bytes("x")}, {"empty", Bytes("")}});
    return Fingerprint();
  };
  const std::string plain = write(~size_t{0});
  EXPECT_EQ(write(~size_t{0}), plain);
  for (size_t at : {0, 63, 936, 999}) EXPECT_NE(write(at), plain) << at;
  EXPECT_EQ(write(500), plain);  // a sample, by design: reading whole checkpoints would take minutes
}

TEST_F(CheckpointTest, NoCheckpointIsNotFound) {
  EXPECT_EQ(Checkpoint::Open(directory_ / "nowhere").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(Checkpoint::Open(directory_.path()).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace cachalot

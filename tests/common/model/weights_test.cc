#include "common/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "common/loader/checkpoint.h"
#include "tests/common/loader/tensor_files.h"

namespace cachalot {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::ReadTensors;
using testing::ReadText;
using testing::Source;
using testing::StoredTensors;
using testing::TempDir;
using testing::WriteTensors;
using testing::WriteText;

const std::string kTiny = Source("tests/golden/oracle/tiny");
const std::string kFlash = Source("tests/golden/oracle/flash-fp4-fp8");
const std::string kDemo = Source("models/demo");

std::shared_ptr<const ModelWeights> LoadOrDie(const std::string& directory,
                                              const WeightSelection& selection) {
  auto weights = ModelWeights::Load(directory, selection);
  EXPECT_TRUE(weights.ok()) << StatusMessage(weights.status());
  return weights.ok() ? *weights : nullptr;
}

/// A copy of a golden checkpoint with its tensors edited; loads it and returns the refusal ("" if it loads).
class Edited {
 public:
  Edited(const std::string& from, const std::function<void(StoredTensors&)>& edit, int pad = 0) {
    StoredTensors tensors = ReadTensors(from + "/model.safetensors");
    edit(tensors);
    WriteTensors(directory_ / "model.safetensors", tensors, pad);
    WriteText(directory_ / "config.json", ReadText(from + "/config.json"));
  }
  std::string path() const { return directory_.path(); }
  std::string Refusal(const WeightSelection& selection = WeightSelection::All()) const {
    const auto weights = ModelWeights::Load(path(), selection);
    return weights.ok() ? "" : StatusMessage(weights.status());
  }

 private:
  TempDir directory_;
};

void ExpectBytes(const MatrixView& view, const std::string& bytes) {
  ASSERT_TRUE(view.present());
  ASSERT_EQ(static_cast<size_t>(view.rows * view.row_bytes()), bytes.size());
  EXPECT_EQ(std::memcmp(view.data, bytes.data(), bytes.size()), 0);
}

TEST(WeightsTest, LoadsSavePretrainedNames) {
  const auto w = LoadOrDie(kTiny, WeightSelection::All());
  ASSERT_NE(w, nullptr);
  const StoredTensors stored = ReadTensors(kTiny + "/model.safetensors");
  EXPECT_EQ(w->embed.dtype, DType::kBF16);
  ExpectBytes(w->embed, stored.at("model.embed_tokens.weight").bytes);
  ExpectBytes(w->head, stored.at("head.weight").bytes);
  ExpectBytes(w->hc_head.fn, stored.at("model.hc_head.hc_fn").bytes);
  EXPECT_EQ(w->hc_head.fn.dtype, DType::kF32);
  ASSERT_EQ(w->layers.size(), 6u);

  const LayerWeights& csa = w->layers[2];
  ExpectBytes(csa.attn.wo_a, stored.at("model.layers.2.attn.wo_a.weight").bytes);
  ExpectBytes(csa.attn.indexer.compressor.wkv,
              stored.at("model.layers.2.attn.indexer.compressor.wkv.weight").bytes);
  // The layer's norm is stored as attn.norm; the compressor's must not be taken for it.
  const std::string& norm = stored.at("model.layers.2.attn.norm.weight").bytes;
  ASSERT_EQ(csa.attn.kv_norm.size() * 4, norm.size());
  EXPECT_EQ(std::memcmp(csa.attn.kv_norm.data(), norm.data(), norm.size()), 0);
  EXPECT_NE(csa.attn.kv_norm, csa.attn.compressor.norm);
  EXPECT_EQ(csa.attn.compressor.ape.size(), 4u * 64);
  EXPECT_EQ(w->layers[3].attn.compressor.ape.size(), 128u * 32);
  EXPECT_FALSE(w->layers[3].attn.indexer.wq_b.present());
  EXPECT_FALSE(w->layers[0].attn.compressor.wkv.present());

  EXPECT_EQ(w->layers[0].moe.tid2eid.size(), 512u * 4);
  EXPECT_TRUE(w->layers[0].moe.bias.empty());
  EXPECT_TRUE(csa.moe.tid2eid.empty());
  EXPECT_EQ(csa.moe.bias.size(), 16u);
  ASSERT_EQ(csa.moe.experts.size(), 16u);
  ExpectBytes(csa.moe.experts[15].w2, stored.at("model.layers.2.ffn.experts.15.w2.weight").bytes);
}

TEST(WeightsTest, LoadsTheReleasedFormats) {
  const auto w = LoadOrDie(kFlash, WeightSelection::All());
  ASSERT_NE(w, nullptr);
  const StoredTensors stored = ReadTensors(kFlash + "/model.safetensors");
  const MatrixView& wq_a = w->layers[1].attn.wq_a;  // 160 rows: the second block is ragged
  EXPECT_EQ(wq_a.dtype, DType::kF8E4M3);
  EXPECT_EQ(wq_a.scale.block_rows, 128);
  EXPECT_EQ(wq_a.scale.block_cols, 128);
  ExpectBytes(wq_a, stored.at("layers.1.attn.wq_a.weight").bytes);
  const std::string& scale = stored.at("layers.1.attn.wq_a.scale").bytes;
  EXPECT_EQ(std::memcmp(wq_a.scale.data, scale.data(), scale.size()), 0);

  const MatrixView& w1 = w->layers[3].moe.experts[31].w1;
  EXPECT_EQ(w1.dtype, DType::kFP4);
  EXPECT_EQ(w1.rows, 64);
  EXPECT_EQ(w1.cols, 256);
  EXPECT_EQ(w1.scale.block_rows, 1);
  EXPECT_EQ(w1.scale.block_cols, 32);
  ExpectBytes(w1, stored.at("layers.3.ffn.experts.31.w1.weight").bytes);
  EXPECT_EQ(w->norm.size(), 256u);  // bf16, widened
}

TEST(WeightsTest, LoadsShards) {
  const auto w = LoadOrDie(kDemo, WeightSelection::All());
  ASSERT_NE(w, nullptr);
  EXPECT_EQ(w->checkpoint->MappedFiles(), 3);
  EXPECT_EQ(w->layers[5].moe.experts.size(), 256u);
  EXPECT_TRUE(w->layers[5].moe.experts[255].w2.present());
}

TEST(WeightsTest, MapsOnlyWhatTheRoleOwns) {
  const auto dense = LoadOrDie(kDemo, WeightSelection::DenseOnly());
  const auto shard = LoadOrDie(kDemo, WeightSelection::Experts(32, 64));
  const auto none = LoadOrDie(kDemo, WeightSelection::Experts(0, 0));
  const auto all = LoadOrDie(kDemo, WeightSelection::All());
  ASSERT_TRUE(dense && shard && none && all);
  EXPECT_TRUE(dense->embed.present());
  EXPECT_TRUE(dense->layers[0].moe.shared.w1.present());
  EXPECT_FALSE(dense->layers[0].moe.experts[40].w1.present());
  EXPECT_FALSE(shard->embed.present());
  EXPECT_TRUE(shard->norm.empty());
  EXPECT_FALSE(shard->layers[0].moe.gate.present());
  EXPECT_FALSE(shard->layers[0].moe.shared.w1.present());
  EXPECT_EQ(shard->layers[0].moe.experts.size(), 256u);
  for (int expert : {31, 32, 63, 64}) {
    EXPECT_EQ(shard->layers[3].moe.experts[expert].w2.present(), expert == 32 || expert == 63) << expert;
  }
  EXPECT_EQ(none->checkpoint->MappedFiles(), 0);
  EXPECT_EQ(none->checkpoint->MappedBytes(), 0);
  const int64_t experts = all->checkpoint->MappedBytes() - dense->checkpoint->MappedBytes();
  EXPECT_EQ(shard->checkpoint->MappedBytes() * 8, experts);
}

TEST(WeightsTest, RefusesExpertRangesOutsideTheModel) {
  for (const auto& range :
       {WeightSelection::Experts(-2, 1), WeightSelection::Experts(3, 2), WeightSelection::Experts(0, 17)}) {
    const auto weights = ModelWeights::Load(kTiny, range);
    EXPECT_EQ(weights.status().code(), StatusCode::kInvalidArgument);
  }
}

TEST(WeightsTest, FingerprintIsTheSameForEveryRole) {
  const std::string all = LoadOrDie(kFlash, WeightSelection::All())->fingerprint;
  EXPECT_EQ(all.size(), 64u);
  EXPECT_EQ(all, LoadOrDie(kFlash, WeightSelection::DenseOnly())->fingerprint);
  EXPECT_EQ(all, LoadOrDie(kFlash, WeightSelection::Experts(0, 4))->fingerprint);
  EXPECT_EQ(all, LoadOrDie(kFlash, WeightSelection::Experts(4, 32))->fingerprint);
  EXPECT_NE(all, LoadOrDie(kTiny, WeightSelection::DenseOnly())->fingerprint);
}

TEST(WeightsTest, FingerprintSeesOneByteAndTheConfig) {
  const auto flip = [](size_t at) {
    return
        [at](StoredTensors& tensors) { tensors.at("model.layers.4.ffn.experts.7.w3.weight").bytes[at] ^= 1; };
  };
  const Edited same(kTiny, [](StoredTensors&) {}), copy(kTiny, [](StoredTensors&) {});
  const Edited first(kTiny, flip(0)), last(kTiny, flip(32 * 64 * 2 - 1)),
      config(kTiny, [](StoredTensors&) {});
  auto json = nlohmann::json::parse(ReadText(kTiny + "/config.json"));
  json["index_topk"] = 7;
  WriteText(config.path() + "/config.json", json.dump());
  const auto fingerprint = [](const Edited& edited) {
    return LoadOrDie(edited.path(), WeightSelection::DenseOnly())->fingerprint;
  };
  EXPECT_EQ(fingerprint(same), fingerprint(copy));
  EXPECT_NE(fingerprint(same), fingerprint(first));
  EXPECT_NE(fingerprint(same), fingerprint(last));
  EXPECT_NE(fingerprint(same), fingerprint(config));
}

TEST(WeightsTest, MisalignedDataIsCopied) {
  const Edited odd(
      kTiny, [](StoredTensors&) {}, /*pad=*/1);
  const auto w = LoadOrDie(odd.path(), WeightSelection::All());
  ASSERT_NE(w, nullptr);
  const StoredTensors stored = ReadTensors(kTiny + "/model.safetensors");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(w->hc_head.fn.data) % 4, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(w->embed.data) % 2, 0u);
  ExpectBytes(w->hc_head.fn, stored.at("model.hc_head.hc_fn").bytes);
  ExpectBytes(w->embed, stored.at("model.embed_tokens.weight").bytes);
  EXPECT_GT(w->checkpoint->AllocatedBytes(), 0);
}

TEST(WeightsTest, AcceptsTheSpellingsOfConvertedFiles) {
  // model.md 7.3 variant 2, int32 tables, a useless bias in a hash layer, MTP tensors and fp32 scales.
  const Edited renamed(kFlash, [](StoredTensors& tensors) {
    StoredTensors out;
    for (auto& [name, tensor] : tensors) {
      std::string to = "model." + name;
      const auto replace = [&](const std::string& from, const std::string& with) {
        if (const size_t at = to.find(from); at != std::string::npos) to.replace(at, from.size(), with);
      };
      replace(".attn.", ".self_attn.");
      replace(".ffn.", ".mlp.");
      replace(".gate.bias", ".gate.e_score_correction_bias");
      if (to.ends_with(".scale")) replace(".scale", ".weight_scale_inv");
      out[to] = tensor;
    }
    auto& table = out.at("model.layers.0.mlp.gate.tid2eid");
    std::string narrow;
    for (size_t i = 0; i < table.bytes.size(); i += 8) narrow += table.bytes.substr(i, 4);
    table.dtype = "I32";
    table.bytes = narrow;
    auto& scale = out.at("model.layers.0.self_attn.wkv.weight_scale_inv");
    std::string wide;
    for (char byte : scale.bytes) {
      const float value = E8M0ToFloat(static_cast<uint8_t>(byte));
      wide.append(reinterpret_cast<const char*>(&value), 4);
    }
    scale.dtype = "F32";
    scale.bytes = wide;
    out["model.layers.0.mlp.gate.e_score_correction_bias"] = {"F32", {32}, std::string(32 * 4, 'x')};
    out["mtp.0.enorm.weight"] = {"BF16", {256}, std::string(512, '\0')};
    tensors = std::move(out);
  });
  const auto a = LoadOrDie(renamed.path(), WeightSelection::All()),
             b = LoadOrDie(kFlash, WeightSelection::All());
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a->layers[0].moe.tid2eid, b->layers[0].moe.tid2eid);
  EXPECT_TRUE(a->layers[0].moe.bias.empty());
  EXPECT_EQ(a->layers[1].moe.bias, b->layers[1].moe.bias);
  EXPECT_EQ(a->layers[2].attn.kv_norm, b->layers[2].attn.kv_norm);
  EXPECT_EQ(a->layers[0].attn.wkv.scale.dtype, DType::kF32);
}

TEST(WeightsTest, NamesWhatIsMissingOrMisshapen) {
  const auto without = [](const std::string& from, const std::string& name) {
    return Edited(from, [&](StoredTensors& tensors) { ASSERT_EQ(tensors.erase(name), 1u) << name; })
        .Refusal();
  };
  EXPECT_THAT(without(kTiny, "model.norm.weight"), HasSubstr("tensor 'norm.weight'"));
  EXPECT_THAT(without(kTiny, "model.layers.2.ffn.gate.bias"), HasSubstr("'layers.2.ffn.gate.bias'"));
  EXPECT_THAT(without(kTiny, "model.layers.4.attn.indexer.wq_b.weight"),
              HasSubstr("'layers.4.attn.indexer.wq_b"));
  EXPECT_THAT(without(kFlash, "layers.3.ffn.experts.9.w2.scale"),
              HasSubstr("'layers.3.ffn.experts.9.w2.scale'"));
  EXPECT_THAT(without(kFlash, "layers.0.attn.wo_b.scale"), HasSubstr("'layers.0.attn.wo_b.scale'"));

  const auto reshaped = [](const std::string& from, const std::string& name, std::vector<int64_t> shape) {
    return Edited(from, [&](StoredTensors& tensors) { tensors.at(name).shape = shape; }).Refusal();
  };
  EXPECT_THAT(reshaped(kTiny, "model.layers.3.attn.compressor.ape", {32, 128}),
              AllOf(HasSubstr("model.safetensors: tensor 'model.layers.3.attn.compressor.ape'"),
                    HasSubstr("wanted shape [128, 32]"), HasSubstr("got [32, 128]")));
  EXPECT_THAT(reshaped(kFlash, "layers.0.ffn.experts.0.w1.weight", {128, 64}),
              HasSubstr("wanted shape [64, 128]"));
  EXPECT_THAT(reshaped(kFlash, "layers.0.attn.wq_b.scale", {2, 4}), HasSubstr("wanted shape [4, 2]"));
  EXPECT_THAT(reshaped(kTiny, "head.weight", {512 * 64}), HasSubstr("wanted shape [512, 64]"));
}

TEST(WeightsTest, RefusesUnfitValues) {
  const auto edited = [](const std::string& from, const std::function<void(StoredTensors&)>& edit) {
    return Edited(from, edit).Refusal();
  };
  EXPECT_THAT(
      edited(kTiny, [](StoredTensors& t) { t.at("head.weight").dtype = "F16"; }),
      AllOf(HasSubstr("'head.weight'"), HasSubstr("wanted dtype F32 or BF16 or F8_E4M3 or I8, got F16")));
  EXPECT_THAT(edited(kFlash, [](StoredTensors& t) { t.at("layers.2.attn.wo_a.scale").bytes[1] = '\xff'; }),
              AllOf(HasSubstr("'layers.2.attn.wo_a.scale'"), HasSubstr("255")));
  EXPECT_THAT(
      edited(kFlash, [](StoredTensors& t) { t.at("layers.2.ffn.experts.3.w3.scale").bytes[100] = '\xff'; }),
      HasSubstr("'layers.2.ffn.experts.3.w3.scale'"));
  const std::string table = "layers.0.ffn.gate.tid2eid";
  EXPECT_THAT(edited(kFlash, [&](StoredTensors& t) { t.at(table).bytes[8 * 6 * 5] = 32; }),
              AllOf(HasSubstr("tid2eid' row 5"), HasSubstr("[0, 32)"), HasSubstr("got 32")));
  EXPECT_THAT(edited(kFlash, [&](StoredTensors& t) { t.at(table).bytes[8 * 6 * 5 + 7] = '\x80'; }),
              HasSubstr("tid2eid' row 5"));
  EXPECT_THAT(edited(kFlash, [&](StoredTensors& t) { t.at(table).bytes[8] = t.at(table).bytes[0]; }),
              AllOf(HasSubstr("tid2eid' row 0"), HasSubstr("twice")));
  EXPECT_THAT(
      edited(kFlash,
             [](StoredTensors& t) { std::memset(&t.at("layers.1.attn.attn_sink").bytes[4], 255, 4); }),
      AllOf(HasSubstr("'layers.1.attn.attn_sink'"), HasSubstr("finite")));
}

TEST(WeightsTest, ARoleDoesNotMindDefectsOfTensorsItDoesNotOwn) {
  const Edited broken(kTiny, [](StoredTensors& t) { t.erase("model.layers.2.ffn.experts.9.w1.weight"); });
  EXPECT_EQ(broken.Refusal(WeightSelection::DenseOnly()), "");
  EXPECT_EQ(broken.Refusal(WeightSelection::Experts(0, 9)), "");
  EXPECT_NE(broken.Refusal(WeightSelection::Experts(8, 16)), "");
}

TEST(WeightsTest, ReportsUnexpectedTensorsButLoads) {
  const Edited extra(kTiny, [](StoredTensors& t) {
    t["model.layers.0.attn.surprise"] = {"F32", {1}, std::string(4, '\0')};
    t["model.mtp.0.markov_head.weight"] = {"F32", {1}, std::string(4, '\0')};
  });
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(extra.Refusal(), "");
  const std::string log = ::testing::internal::GetCapturedStdout();
  EXPECT_THAT(log, HasSubstr("1 unexpected tensors are not used: 'layers.0.attn.surprise'"));
}

TEST(WeightsTest, MissingFilesAreNotFound) {
  TempDir directory;
  EXPECT_EQ(ModelWeights::Load(directory / "nowhere", WeightSelection::All()).status().code(),
            StatusCode::kNotFound);
  EXPECT_EQ(ModelWeights::Load(directory.path(), WeightSelection::All()).status().code(),
            StatusCode::kNotFound);
  WriteText(directory / "config.json", ReadText(kTiny + "/config.json"));
  EXPECT_EQ(ModelWeights::Load(directory.path(), WeightSelection::All()).status().code(),
            StatusCode::kNotFound);
}

}  // namespace
}  // namespace cachalot

// A small model of V4-Pro's shape: layers HCA, HCA, CSA, HCA, CSA, ..., none of them window-only, 48 experts,
// 8 heads in 4 output groups, YaRN, FP4 experts and FP8 dense layers. Its weights come from a hash of their
// names, so no file holds them; tests/golden/pro-shape has what the reference in numpy computed from them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "common/model/weights_summary.h"
#include "tests/common/loader/tensor_files.h"
#include "tests/common/model/test_engine.h"

namespace cachalot {
namespace {

using Json = nlohmann::json;
using testing::StoredTensors;
using testing::TempDir;
using testing::TestEngine;

constexpr int kLayers = 7, kExperts = 48, kPerToken = 6, kVocab = 96, kHidden = 64, kWidth = 32, kRankQ = 48;
constexpr int kHeads = 8, kHeadDim = 32, kGroups = 4, kRankO = 16, kIndexHeads = 16, kIndexDim = 16,
              kHashLayers = 3;
constexpr int kRatios[] = {128, 128, 4, 128, 4, 128, 4, 0};  // the last is the MTP layer's

uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
uint64_t Random(const std::string& name, int64_t i) {
  uint64_t seed = 0xcbf29ce484222325u;  // FNV-1a
  for (char c : name) seed = (seed ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return Mix(seed + static_cast<uint64_t>(i)) >> 8;
}

class ProShape {
 public:
  static StoredTensors Tensors() {
    ProShape t;
    t.Bf16("embed.weight", {kVocab, kHidden}, 1);
    t.Bf16("head.weight", {kVocab, kHidden}, 0.25f);
    t.Norm("norm.weight", kHidden);
    t.HyperConnection("hc_head_", 4, 1);
    for (int layer = 0; layer < kLayers; ++layer) t.Layer(layer);
    return t.tensors_;
  }

  static Json Config() {
    return {{"model_type", "deepseek_v4"},
            {"vocab_size", kVocab},
            {"hidden_size", kHidden},
            {"num_hidden_layers", kLayers},
            {"num_nextn_predict_layers", 1},
            {"num_attention_heads", kHeads},
            {"head_dim", kHeadDim},
            {"qk_rope_head_dim", 8},
            {"q_lora_rank", kRankQ},
            {"o_groups", kGroups},
            {"o_lora_rank", kRankO},
            {"sliding_window", 16},
            {"compress_ratios", kRatios},
            {"index_n_heads", kIndexHeads},
            {"index_head_dim", kIndexDim},
            {"index_topk", 8},
            {"n_routed_experts", kExperts},
            {"num_experts_per_tok", kPerToken},
            {"moe_intermediate_size", kWidth},
            {"num_hash_layers", kHashLayers},
            {"routed_scaling_factor", 2.5},
            {"max_position_embeddings", 4096},
            {"rope_scaling", {{"type", "yarn"}, {"factor", 16}, {"original_max_position_embeddings", 256}}}};
  }

 private:
  void Layer(int layer) {
    const std::string at = "layers." + std::to_string(layer) + ".";
    Norm(at + "attn_norm.weight", kHidden);
    Norm(at + "ffn_norm.weight", kHidden);
    HyperConnection(at + "hc_attn_", 24, 3);
    HyperConnection(at + "hc_ffn_", 24, 3);
    Attention(at + "attn.", kRatios[layer]);
    Bf16(at + "ffn.gate.weight", {kExperts, kHidden}, 0.25f);
    if (layer < kHashLayers) Table(at + "ffn.gate.tid2eid");
    if (layer >= kHashLayers) F32(at + "ffn.gate.bias", {kExperts}, 0.25f);
    for (const char* name : {"w1", "w3"}) Fp8(at + "ffn.shared_experts." + name, kWidth, kHidden);
    Fp8(at + "ffn.shared_experts.w2", kHidden, kWidth);
    for (int expert = 0; expert < kExperts; ++expert) {
      const std::string to = at + "ffn.experts." + std::to_string(expert) + ".";
      for (const char* name : {"w1", "w3"}) Fp4(to + name, kWidth, kHidden);
      Fp4(to + "w2", kHidden, kWidth);
    }
  }
  void Attention(const std::string& at, int ratio) {
    Fp8(at + "wq_a", kRankQ, kHidden);
    Norm(at + "q_norm.weight", kRankQ);
    Fp8(at + "wq_b", kHeads * kHeadDim, kRankQ);
    Fp8(at + "wkv", kHeadDim, kHidden);
    Norm(at + "kv_norm.weight", kHeadDim);
    F32(at + "attn_sink", {kHeads}, 1);
    Fp8(at + "wo_a", kGroups * kRankO, kHeads / kGroups * kHeadDim);
    Fp8(at + "wo_b", kHidden, kGroups * kRankO);
    Compressor(at + "compressor.", ratio, kHeadDim);
    if (ratio != 4) return;
    Fp8(at + "indexer.wq_b", kIndexHeads * kIndexDim, kRankQ);
    Bf16(at + "indexer.weights_proj.weight", {kIndexHeads, kHidden}, 0.25f);
    Compressor(at + "indexer.compressor.", 4, kIndexDim);
  }
  void Compressor(const std::string& at, int ratio, int head_dim) {
    const int64_t width = (ratio == 4 ? 2 : 1) * head_dim;
    F32(at + "ape", {ratio, width}, 0.5f);
    Bf16(at + "wkv.weight", {width, kHidden}, 0.25f);
    Bf16(at + "wgate.weight", {width, kHidden}, 0.25f);
    Norm(at + "norm.weight", head_dim);
  }
  void HyperConnection(const std::string& at, int rows, int scales) {
    F32(at + "fn", {rows, 4 * kHidden}, 0.125f);
    F32(at + "base", {rows}, 0.5f);
    F32(at + "scale", {scales}, 1, 1);
  }

  /// middle + size * {-127..127} / 128: exact in bf16 for middle 0 and in fp32.
  void Floats(const std::string& name, std::vector<int64_t> shape, float size, float middle, bool bf16) {
    testing::StoredTensor& tensor = tensors_[name];
    tensor = {bf16 ? "BF16" : "F32", shape, {}};
    int64_t count = 1;
    for (int64_t dimension : shape) count *= dimension;
    for (int64_t i = 0; i < count; ++i) {
      const float value =
          middle + size * static_cast<float>(static_cast<int>(Random(name, i) % 255) - 127) / 128;
      tensor.bytes.append(reinterpret_cast<const char*>(&value) + (bf16 ? 2 : 0), bf16 ? 2 : 4);
    }
  }
  void Bf16(const std::string& name, std::vector<int64_t> shape, float size) {
    Floats(name, shape, size, 0, true);
  }
  void F32(const std::string& name, std::vector<int64_t> shape, float size, float middle = 0) {
    Floats(name, shape, size, middle, false);
  }
  void Norm(const std::string& name, int64_t width) { Floats(name, {width}, 0.25f, 1, false); }

  void Fp8(const std::string& name, int64_t rows, int64_t cols) {
    std::string bytes, scales;
    for (int64_t i = 0; i < rows * cols; ++i) {
      const uint64_t r = Random(name, i);
      bytes.push_back(static_cast<char>(0x28 + r % 24 + (r & 0x100 ? 0x80 : 0)));  // +-[0.25, 1.875]
    }
    const int64_t down = (rows + 127) / 128, across = (cols + 127) / 128;
    for (int64_t i = 0; i < down * across; ++i)
      scales.push_back(static_cast<char>(124 + Random(name + "s", i) % 2));
    tensors_[name + ".weight"] = {"F8_E4M3", {rows, cols}, bytes};
    tensors_[name + ".scale"] = {"F8_E8M0", {down, across}, scales};
  }
  void Fp4(const std::string& name, int64_t rows, int64_t cols) {
    std::string bytes, scales;
    for (int64_t i = 0; i < rows * cols / 2; ++i) bytes.push_back(static_cast<char>(Random(name, i)));
    for (int64_t i = 0; i < rows * cols / 32; ++i)
      scales.push_back(static_cast<char>(122 + Random(name + "s", i) % 3));
    tensors_[name + ".weight"] = {"I8", {rows, cols / 2}, bytes};
    tensors_[name + ".scale"] = {"F8_E8M0", {rows, cols / 32}, scales};
  }
  void Table(const std::string& name) {
    std::string bytes;
    for (int64_t id = 0; id < kVocab; ++id)
      for (int64_t slot = 0; slot < kPerToken; ++slot) {
        const int64_t expert = static_cast<int64_t>((Random(name, id) + 7 * slot) % kExperts);
        bytes.append(reinterpret_cast<const char*>(&expert), 8);
      }
    tensors_[name] = {"I64", {kVocab, kPerToken}, bytes};
  }

  StoredTensors tensors_;
};

void WriteModel(const std::string& directory) {
  std::filesystem::create_directories(directory);
  testing::WriteTensors(directory + "/model.safetensors", ProShape::Tensors());
  testing::WriteText(directory + "/config.json", ProShape::Config().dump());
}

struct Golden {
  std::vector<int32_t> ids, greedy;
  std::vector<size_t> positions;
  std::vector<std::vector<float>> logits;  // [positions, vocab]
};

Golden ReadGolden() {
  const Json json = Json::parse(testing::ReadText(testing::Source("tests/golden/pro-shape/golden.json")));
  return {json["ids"], json["greedy"], json["positions"], json["logits"]};
}

std::vector<const kernels::KernelTable*> BackEnds() {
  std::vector<const kernels::KernelTable*> tables = {&kernels::RefKernels()};
  if (kernels::CpuKernels()) tables.push_back(kernels::CpuKernels());
  return tables;
}

class ProShapeTest : public ::testing::Test {
 protected:
  void SetUp() override { WriteModel(directory_.path()); }
  TempDir directory_;
};

TEST_F(ProShapeTest, AgreesWithTheReference) {
  const Golden golden = ReadGolden();
  ASSERT_GT(golden.ids.size(), 256u);  // two rows of ratio 128 and choices of the indexer
  for (const auto* kernels : BackEnds()) {
    TestEngine engine(directory_.path(), *kernels);
    SequenceKv kv = engine.NewSequence(static_cast<int64_t>(golden.ids.size() + golden.greedy.size()));
    const auto logits = engine.Run(kv, golden.ids, golden.ids.size());
    for (size_t i = 0; i < golden.positions.size(); ++i)
      for (int token = 0; token < kVocab; ++token)
        ASSERT_NEAR(logits[golden.positions[i] * kVocab + token], golden.logits[i][token], 1e-4)
            << kernels->name << " position " << golden.positions[i] << " token " << token;
    std::vector<float> row(logits.end() - kVocab, logits.end());
    std::vector<int32_t> tokens;
    while (tokens.size() < golden.greedy.size()) {
      tokens.push_back(static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
      if (tokens.size() < golden.greedy.size()) row = engine.Run(kv, {&tokens.back(), 1}, 1);
    }
    EXPECT_EQ(tokens, golden.greedy) << kernels->name;
  }
}

TEST_F(ProShapeTest, ChunksAndDecodeChangeNoBit) {
  const std::vector<int32_t> ids = ReadGolden().ids;
  for (const auto* kernels : BackEnds()) {
    TestEngine engine(directory_.path(), *kernels);
    SequenceKv kv = engine.NewSequence(static_cast<int64_t>(ids.size()));
    const auto whole = engine.Run(kv, ids, ids.size());
    for (size_t chunk : {1, 3, 64, 129}) {
      kv.Reset();
      EXPECT_EQ(engine.Run(kv, ids, chunk), whole) << kernels->name << " chunk " << chunk;
    }
    for (size_t split : {3, 127, 128, 130, 255}) {
      kv.Reset();
      auto both = engine.Run(kv, std::span(ids).first(split), split);
      const auto tail = engine.Run(kv, std::span(ids).subspan(split), 1);
      both.insert(both.end(), tail.begin(), tail.end());
      EXPECT_EQ(both, whole) << kernels->name << " split " << split;
    }
  }
}

TEST_F(ProShapeTest, HasNoWindowOnlyLayer) {
  const ModelConfig config = *ModelConfig::Load(directory_.path());
  EXPECT_THAT(config.layers, ::testing::Not(::testing::Contains(LayerKind::kWindow)));
  const CheckpointSummary summary = InspectCheckpoint(config, **Checkpoint::Open(directory_.path()));
  EXPECT_THAT(summary.refusals, ::testing::IsEmpty());
  EXPECT_THAT(summary.unexpected, ::testing::IsEmpty());
}

/// For tests/golden/pro-shape/make_golden.py.
TEST(ProShapeFilesTest, DISABLED_WriteModelHere) { WriteModel("pro-shape"); }

}  // namespace
}  // namespace cachalot

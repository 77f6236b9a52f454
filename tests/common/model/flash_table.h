#pragma once
// The tensor table of the released V4-Flash checkpoint (model.md 7.1), and a set of sparse files that has it:
// real headers, no data. For everything that reads headers only.

#include <filesystem>
#include <string>
#include <vector>

#include "tests/common/loader/tensor_files.h"

namespace cachalot::testing {

struct TableEntry {
  std::string name, dtype;
  std::vector<int64_t> shape;

  int64_t bytes() const {
    int64_t count = dtype == "I64" ? 8 : dtype == "F32" ? 4 : dtype == "BF16" ? 2 : 1;
    for (int64_t dimension : shape) count *= dimension;
    return count;
  }
};

class FlashTable {
 public:
  static constexpr int64_t kVocab = 129280, kHidden = 4096, kExperts = 256, kWidth = 2048;
  static constexpr int kLayers = 43, kShards = 46;

  /// One list a shard: embedding, layers, head, MTP.
  static std::vector<std::vector<TableEntry>> Shards() {
    std::vector<std::vector<TableEntry>> shards;
    shards.push_back({{"embed.weight", "BF16", {kVocab, kHidden}}});
    for (int layer = 0; layer < kLayers; ++layer) {
      const int ratio = layer < 2 ? 0 : layer % 2 == 0 ? 4 : 128;
      shards.push_back(Block("layers." + std::to_string(layer) + ".", ratio, layer < 3));
    }
    FlashTable top;
    top.Add("head.weight", "BF16", {kVocab, kHidden});
    top.Add("norm.weight", "BF16", {kHidden});
    top.HyperHead("");
    shards.push_back(top.entries_);
    FlashTable mtp;
    mtp.entries_ = Block("mtp.0.", 0, false);
    for (const char* name : {"mtp.0.e_proj", "mtp.0.h_proj"}) mtp.Fp8(name, kHidden, kHidden);
    for (const char* name : {"mtp.0.enorm", "mtp.0.hnorm", "mtp.0.norm"})
      mtp.Add(std::string(name) + ".weight", "BF16", {kHidden});
    mtp.HyperHead("mtp.0.");
    shards.push_back(mtp.entries_);
    return shards;
  }

  static nlohmann::json Config() {
    nlohmann::json ratios = {0, 0};
    for (int i = 0; i < 20; ++i) ratios.insert(ratios.end(), {4, 128});
    ratios.insert(ratios.end(), {4, 0});
    return {{"model_type", "deepseek_v4"},
            {"compress_ratios", ratios},
            {"rope_scaling",
             {{"type", "yarn"},
              {"factor", 16},
              {"original_max_position_embeddings", 65536},
              {"beta_fast", 32},
              {"beta_slow", 1}}}};
  }

  /// Headers, and holes where the 148 GiB of data would be.
  static void WriteSparse(const TempDir& directory) {
    nlohmann::json weight_map;
    const auto shards = Shards();
    for (size_t i = 0; i < shards.size(); ++i) {
      char file[64];
      std::snprintf(file, sizeof(file), "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
      nlohmann::json header;
      uint64_t at = 0;
      for (const TableEntry& entry : shards[i]) {
        const uint64_t end = at + entry.bytes();
        header[entry.name] = {{"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {at, end}}};
        weight_map[entry.name] = file;
        at = end;
      }
      const std::string text = header.dump();
      WriteText(directory / file, SafetensorsImage(text, ""));
      std::filesystem::resize_file(directory / file, 8 + text.size() + at);
    }
    WriteText(directory / "model.safetensors.index.json", nlohmann::json{{"weight_map", weight_map}}.dump());
    WriteText(directory / "config.json", Config().dump());
  }

 private:
  static int64_t Blocks(int64_t n) { return (n + 127) / 128; }

  void Add(const std::string& name, const std::string& dtype, std::vector<int64_t> shape) {
    entries_.push_back({name, dtype, std::move(shape)});
  }
  void Fp8(const std::string& name, int64_t rows, int64_t cols) {
    Add(name + ".weight", "F8_E4M3", {rows, cols});
    Add(name + ".scale", "F8_E8M0", {Blocks(rows), Blocks(cols)});
  }
  void Fp4(const std::string& name, int64_t rows, int64_t cols) {
    Add(name + ".weight", "I8", {rows, cols / 2});
    Add(name + ".scale", "F8_E8M0", {rows, cols / 32});
  }
  void HyperHead(const std::string& at) {
    Add(at + "hc_head_fn", "F32", {4, 4 * kHidden});
    Add(at + "hc_head_base", "F32", {4});
    Add(at + "hc_head_scale", "F32", {1});
  }
  void Compressor(const std::string& at, int64_t ratio, int64_t width, int64_t head_dim) {
    Add(at + "ape", "F32", {ratio, width});
    Add(at + "wkv.weight", "BF16", {width, kHidden});
    Add(at + "wgate.weight", "BF16", {width, kHidden});
    Add(at + "norm.weight", "BF16", {head_dim});
  }
  void Attention(const std::string& at, int ratio) {
    Fp8(at + "wq_a", 1024, kHidden);
    Add(at + "q_norm.weight", "BF16", {1024});
    Fp8(at + "wq_b", 32768, 1024);
    Fp8(at + "wkv", 512, kHidden);
    Add(at + "kv_norm.weight", "BF16", {512});
    Add(at + "attn_sink", "F32", {64});
    Fp8(at + "wo_a", 8192, kHidden);
    Fp8(at + "wo_b", kHidden, 8192);
    if (ratio != 0) Compressor(at + "compressor.", ratio, ratio == 4 ? 1024 : 512, 512);
    if (ratio != 4) return;
    Fp8(at + "indexer.wq_b", 8192, 1024);
    Add(at + "indexer.weights_proj.weight", "BF16", {64, kHidden});
    Compressor(at + "indexer.compressor.", 4, 256, 128);
  }
  static std::vector<TableEntry> Block(const std::string& at, int ratio, bool hash) {
    FlashTable t;
    t.Add(at + "attn_norm.weight", "BF16", {kHidden});
    t.Add(at + "ffn_norm.weight", "BF16", {kHidden});
    for (const std::string part : {"attn", "ffn"}) {
      t.Add(at + "hc_" + part + "_fn", "F32", {24, 4 * kHidden});
      t.Add(at + "hc_" + part + "_base", "F32", {24});
      t.Add(at + "hc_" + part + "_scale", "F32", {3});
    }
    t.Attention(at + "attn.", ratio);
    t.Add(at + "ffn.gate.weight", "BF16", {kExperts, kHidden});
    if (hash) t.Add(at + "ffn.gate.tid2eid", "I64", {kVocab, 6});
    if (!hash) t.Add(at + "ffn.gate.bias", "F32", {kExperts});
    for (const char* name : {"w1", "w3"}) t.Fp8(at + "ffn.shared_experts." + name, kWidth, kHidden);
    t.Fp8(at + "ffn.shared_experts.w2", kHidden, kWidth);
    for (int expert = 0; expert < kExperts; ++expert) {
      const std::string to = at + "ffn.experts." + std::to_string(expert) + ".";
      for (const char* name : {"w1", "w3"}) t.Fp4(to + name, kWidth, kHidden);
      t.Fp4(to + "w2", kHidden, kWidth);
    }
    return t.entries_;
  }

  std::vector<TableEntry> entries_;
};

}  // namespace cachalot::testing

#pragma once
// Rewrites a checkpoint with released names into the other spellings and formats of model.md 7.3, independently
// of the loader's own table of names. Everything here keeps every weight's value exactly.

#include <bit>
#include <map>
#include <string>

#include "common/kernels/ref/dequantise.h"
#include "tests/common/loader/tensor_files.h"

namespace cachalot::testing {

inline bool Ends(const std::string& name, const std::string& suffix) { return name.ends_with(suffix); }

/// The first `from` of the name replaced.
inline std::string Swap(std::string name, const std::string& from, const std::string& to) {
  if (const size_t at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
  return name;
}

template <typename Rename>
StoredTensors Renamed(const StoredTensors& tensors, const Rename& rename) {
  StoredTensors out;
  for (const auto& [name, tensor] : tensors) EXPECT_TRUE(out.emplace(rename(name), tensor).second) << name;
  return out;
}

/// save_pretrained -> released (tests/golden/oracle/tiny).
inline StoredTensors Released(const StoredTensors& saved) {
  return Renamed(saved, [](std::string name) {
    if (name.starts_with("model.")) name.erase(0, 6);
    return Swap(Swap(Swap(name, "embed_tokens.", "embed."), "hc_head.hc_", "hc_head_"), ".attn.norm.",
                ".attn.kv_norm.");
  });
}

inline StoredTensors SavePretrained(const StoredTensors& released) {
  return Renamed(released, [](const std::string& name) {
    if (name == "head.weight") return name;
    if (name == "embed.weight") return std::string("model.embed_tokens.weight");
    if (name.starts_with("hc_head_")) return "model.hc_head.hc_" + name.substr(8);
    return "model." + Swap(name, ".attn.kv_norm.", ".attn.norm.");
  });
}

/// model.md 7.3.2.
inline StoredTensors Converted(const StoredTensors& released) {
  return Renamed(released, [](std::string name) {
    name = Swap(Swap(Swap(name, ".attn.", ".self_attn."), ".ffn.", ".mlp."), "gate.bias",
                "gate.e_score_correction_bias");
    if (Ends(name, ".scale")) name = Swap(name, ".scale", ".weight_scale_inv");
    return "model." + name;
  });
}

inline MatrixView ViewOf(const StoredTensors& tensors, const std::string& weight) {
  const StoredTensor& tensor = tensors.at(weight);
  MatrixView view{.data = tensor.bytes.data(), .rows = tensor.shape[0], .cols = tensor.shape[1]};
  view.dtype = tensor.dtype == "I8"        ? DType::kFP4
               : tensor.dtype == "F8_E4M3" ? DType::kF8E4M3
               : tensor.dtype == "BF16"    ? DType::kBF16
                                           : DType::kF32;
  if (view.dtype == DType::kFP4) view.cols *= 2;
  if (view.dtype == DType::kFP4 || view.dtype == DType::kF8E4M3) {
    const StoredTensor& scale = tensors.at(weight.substr(0, weight.size() - 6) + "scale");
    const int rows = view.dtype == DType::kFP4 ? 1 : 128, cols = view.dtype == DType::kFP4 ? 32 : 128;
    view.scale = {scale.dtype == "F32" ? DType::kF32 : DType::kF8E8M0, scale.bytes.data(), rows, cols};
  }
  return view;
}

inline std::vector<float> Values(const MatrixView& view) {
  std::vector<float> values(view.rows * view.cols);
  for (int64_t r = 0; r < view.rows; ++r)
    kernels::DequantiseRow(view, r, 0, view.cols, values.data() + r * view.cols);
  return values;
}

inline StoredTensor Plain(const std::vector<float>& values, std::vector<int64_t> shape, bool bf16) {
  StoredTensor tensor{bf16 ? "BF16" : "F32", std::move(shape), {}};
  for (float value : values) {
    const auto bits = std::bit_cast<uint32_t>(value);
    EXPECT_TRUE(!bf16 || (bits & 0xffff) == 0) << value << " is not exact in bf16";
    tensor.bytes.append(reinterpret_cast<const char*>(&bits) + (bf16 ? 2 : 0), bf16 ? 2 : 4);
  }
  return tensor;
}

/// Every quantised matrix as bf16 (or fp32, then bf16 matrices too), without scales.
inline StoredTensors Dequantised(const StoredTensors& released, bool bf16) {
  StoredTensors out;
  for (const auto& [name, tensor] : released) {
    const bool quantised = tensor.dtype == "I8" || tensor.dtype == "F8_E4M3";
    if (tensor.dtype == "F8_E8M0") continue;
    if (quantised || (tensor.dtype == "BF16" && !bf16 && tensor.shape.size() == 2)) {
      const MatrixView view = ViewOf(released, name);
      out[name] = Plain(Values(view), {view.rows, view.cols}, bf16);
    } else {
      out[name] = tensor;
    }
  }
  return out;
}

struct Scaled {
  StoredTensor weight, scale;
};

/// FP4 of one or two matrices below each other as one FP8 matrix with 128x128 blocks: exact, since the
/// block's scale is its largest sub-scale / 2^6 and the rest of a sub-scale goes into the exponent of the
/// value (model.md 7.2).
inline Scaled RecastToFp8(const std::vector<MatrixView>& parts, bool fp32_scale) {
  std::map<uint32_t, char> code;
  for (int i = 0; i < 256; ++i) code.emplace(std::bit_cast<uint32_t>(kE4M3ToFloat[i]), static_cast<char>(i));
  std::vector<float> values, scales;  // per element
  const int64_t cols = parts[0].cols;
  for (const MatrixView& part : parts) {
    const std::vector<float> more = Values(part);
    values.insert(values.end(), more.begin(), more.end());
    for (int64_t i = 0; i < part.rows * cols; ++i)
      scales.push_back(kernels::ScaleAt(part, i / cols, i % cols));
  }
  const int64_t rows = static_cast<int64_t>(values.size()) / cols, down = (rows + 127) / 128,
                across = (cols + 127) / 128;
  std::vector<float> block(down * across, 0);
  const auto at = [&](int64_t i) -> float& { return block[i / cols / 128 * across + i % cols / 128]; };
  for (int64_t i = 0; i < rows * cols; ++i) at(i) = std::max(at(i), scales[i] / 64);
  Scaled out{{"F8_E4M3", {rows, cols}, {}}, {fp32_scale ? "F32" : "F8_E8M0", {down, across}, {}}};
  for (int64_t i = 0; i < rows * cols; ++i) {
    const auto found = code.find(std::bit_cast<uint32_t>(values[i] / at(i)));
    EXPECT_NE(found, code.end()) << values[i] << " has no exact e4m3 in its block";
    out.weight.bytes.push_back(found == code.end() ? '\0' : found->second);
  }
  for (float scale : block) {
    const auto bits = std::bit_cast<uint32_t>(scale);
    if (fp32_scale) out.scale.bytes.append(reinterpret_cast<const char*>(&bits), 4);
    if (!fp32_scale) out.scale.bytes.push_back(static_cast<char>(bits >> 23));
  }
  return out;
}

/// Base checkpoints (model.md 7.3.5): the FP4 experts as FP8.
inline StoredTensors Fp8Experts(const StoredTensors& released, bool fp32_scale) {
  StoredTensors out = released;
  for (const auto& [name, tensor] : released) {
    if (tensor.dtype != "I8") continue;
    const Scaled recast = RecastToFp8({ViewOf(released, name)}, fp32_scale);
    out[name] = recast.weight;
    out[name.substr(0, name.size() - 6) + "scale"] = recast.scale;
  }
  return out;
}

/// The runtime name of model.md 7.1 for everything but routed experts.
inline std::string RuntimeName(const std::string& name) {
  static const std::map<std::string, std::string> kTop = {
      {"embed.weight", "model.embed_tokens.weight"}, {"head.weight", "lm_head.weight"},
      {"norm.weight", "model.norm.weight"},          {"hc_head_fn", "model.hc_head.hc_fn"},
      {"hc_head_base", "model.hc_head.hc_base"},     {"hc_head_scale", "model.hc_head.hc_scale"}};
  if (const auto top = kTop.find(name); top != kTop.end()) return top->second;
  if (!name.starts_with("layers.")) return name;
  static const std::pair<const char*, const char*> kLayer[] = {
      {"attn_norm.weight", "input_layernorm.weight"},
      {"ffn_norm.weight", "post_attention_layernorm.weight"},
      {"hc_attn_", "attn_hc."},
      {"hc_ffn_", "ffn_hc."},
      {"attn.indexer.wq_b", "self_attn.compressor.indexer.q_b_proj"},
      {"attn.indexer.weights_proj", "self_attn.compressor.indexer.scorer.weights_proj"},
      {"attn.indexer.compressor.ape", "self_attn.compressor.indexer.position_bias"},
      {"attn.indexer.compressor.wkv", "self_attn.compressor.indexer.kv_proj"},
      {"attn.indexer.compressor.wgate", "self_attn.compressor.indexer.gate_proj"},
      {"attn.indexer.compressor.norm", "self_attn.compressor.indexer.kv_norm"},
      {"attn.compressor.ape", "self_attn.compressor.position_bias"},
      {"attn.compressor.wkv", "self_attn.compressor.kv_proj"},
      {"attn.compressor.wgate", "self_attn.compressor.gate_proj"},
      {"attn.compressor.norm", "self_attn.compressor.kv_norm"},
      {"attn.wq_a", "self_attn.q_a_proj"},
      {"attn.q_norm", "self_attn.q_a_norm"},
      {"attn.wq_b", "self_attn.q_b_proj"},
      {"attn.wkv", "self_attn.kv_proj"},
      {"attn.kv_norm", "self_attn.kv_norm"},
      {"attn.attn_sink", "self_attn.sinks"},
      {"attn.wo_a", "self_attn.o_a_proj"},
      {"attn.wo_b", "self_attn.o_b_proj"},
      {"ffn.gate.bias", "mlp.gate.e_score_correction_bias"},
      {"ffn.gate.", "mlp.gate."},
      {"ffn.shared_experts.w1", "mlp.shared_experts.gate_proj"},
      {"ffn.shared_experts.w3", "mlp.shared_experts.up_proj"},
      {"ffn.shared_experts.w2", "mlp.shared_experts.down_proj"}};
  const size_t body = name.find('.', 7) + 1;
  std::string rest = name.substr(body);
  for (const auto& [from, to] : kLayer) {
    if (!rest.starts_with(from)) continue;
    rest = to + rest.substr(std::string(from).size());
    if (name.find("hc_") == std::string::npos && Ends(rest, ".scale"))
      rest = Swap(rest, ".scale", ".weight_scale_inv");
    return "model." + name.substr(0, body) + rest;
  }
  ADD_FAILURE() << name << " has no runtime name";
  return name;
}

enum class StackAs { kBF16, kF32, kFp8, kFp8F32Scale, kAsStored };

inline void AppendRows(StoredTensor* to, const StoredTensor& part) {
  if (to->shape.empty()) {
    *to = part;
    return;
  }
  to->shape[0] += part.shape[0];
  to->bytes += part.bytes;
}

/// Matrices below each other as one, in the format `as`; the scale has no shape where there is none.
inline Scaled Joined(const StoredTensors& released, const std::vector<std::string>& weights, StackAs as) {
  std::vector<MatrixView> views;
  for (const std::string& weight : weights) views.push_back(ViewOf(released, weight));
  if (as == StackAs::kFp8 || as == StackAs::kFp8F32Scale)
    return RecastToFp8(views, as == StackAs::kFp8F32Scale);
  Scaled joined;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (as != StackAs::kAsStored) {
      AppendRows(&joined.weight,
                 Plain(Values(views[i]), {views[i].rows, views[i].cols}, as == StackAs::kBF16));
      continue;
    }
    AppendRows(&joined.weight, released.at(weights[i]));
    const auto scale = released.find(weights[i].substr(0, weights[i].size() - 6) + "scale");
    if (scale != released.end()) AppendRows(&joined.scale, scale->second);
  }
  return joined;
}

/// Adds one matrix to the stack [experts, rows, cols].
inline void Push(StoredTensor* stack, int experts, const StoredTensor& part) {
  if (stack->shape.empty()) *stack = {part.dtype, {experts, part.shape[0], part.shape[1]}, {}};
  stack->bytes += part.bytes;
}

/// model.md 7.3.3: runtime names, the experts of a layer stacked.
inline StoredTensors Runtime(const StoredTensors& released, int layers, int experts, StackAs as) {
  StoredTensors out;
  for (const auto& [name, tensor] : released)
    if (name.find(".ffn.experts.") == std::string::npos) out[RuntimeName(name)] = tensor;
  for (int layer = 0; layer < layers; ++layer) {
    const std::string from = "layers." + std::to_string(layer) + ".ffn.experts.";
    const std::string to = "model.layers." + std::to_string(layer) + ".mlp.experts.";
    for (int expert = 0; expert < experts; ++expert) {
      const std::string at = from + std::to_string(expert) + ".";
      const std::pair<std::string, std::vector<std::string>> stacks[] = {
          {to + "gate_up_proj", {at + "w1.weight", at + "w3.weight"}},
          {to + "down_proj", {at + "w2.weight"}}};
      for (const auto& [stack, weights] : stacks) {
        const Scaled part = Joined(released, weights, as);
        Push(&out[stack], experts, part.weight);
        if (!part.scale.shape.empty()) Push(&out[stack + "_scale_inv"], experts, part.scale);
      }
    }
  }
  return out;
}

/// int64 tables as int32.
inline StoredTensors NarrowTables(StoredTensors tensors) {
  for (auto& [name, tensor] : tensors) {
    if (!Ends(name, "tid2eid")) continue;
    std::string narrow;
    for (size_t i = 0; i < tensor.bytes.size(); i += 8) narrow += tensor.bytes.substr(i, 4);
    tensor = {"I32", tensor.shape, narrow};
  }
  return tensors;
}

/// e8m0 scales of FP8 matrices as fp32.
inline StoredTensors WideDenseScales(StoredTensors tensors) {
  for (auto& [name, tensor] : tensors) {
    const auto weight =
        Ends(name, ".scale") ? tensors.find(name.substr(0, name.size() - 5) + "weight") : tensors.end();
    if (weight == tensors.end() || weight->second.dtype != "F8_E4M3" || tensor.dtype != "F8_E8M0") continue;
    std::string wide;
    for (char byte : tensor.bytes) {
      const float value = E8M0ToFloat(static_cast<uint8_t>(byte));
      wide.append(reinterpret_cast<const char*>(&value), 4);
    }
    tensor = {"F32", tensor.shape, wide};
  }
  return tensors;
}

}  // namespace cachalot::testing

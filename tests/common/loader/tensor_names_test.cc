#include "common/loader/tensor_names.h"

#include <gtest/gtest.h>

#include <utility>

namespace cachalot {
namespace {

/// transformers' runtime name of every tensor of a layer, as model.md 7.1 lists them.
constexpr std::pair<const char*, const char*> kLayerNames[] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"hc_attn_fn", "attn_hc.fn"},
    {"hc_attn_base", "attn_hc.base"},
    {"hc_attn_scale", "attn_hc.scale"},
    {"hc_ffn_fn", "ffn_hc.fn"},
    {"hc_ffn_base", "ffn_hc.base"},
    {"hc_ffn_scale", "ffn_hc.scale"},
    {"attn.wq_a.weight", "self_attn.q_a_proj.weight"},
    {"attn.wq_a.scale", "self_attn.q_a_proj.weight_scale_inv"},
    {"attn.q_norm.weight", "self_attn.q_a_norm.weight"},
    {"attn.wq_b.weight", "self_attn.q_b_proj.weight"},
    {"attn.wkv.weight", "self_attn.kv_proj.weight"},
    {"attn.kv_norm.weight", "self_attn.kv_norm.weight"},
    {"attn.attn_sink", "self_attn.sinks"},
    {"attn.wo_a.weight", "self_attn.o_a_proj.weight"},
    {"attn.wo_b.weight", "self_attn.o_b_proj.weight"},
    {"attn.compressor.ape", "self_attn.compressor.position_bias"},
    {"attn.compressor.wkv.weight", "self_attn.compressor.kv_proj.weight"},
    {"attn.compressor.wgate.weight", "self_attn.compressor.gate_proj.weight"},
    {"attn.compressor.norm.weight", "self_attn.compressor.kv_norm.weight"},
    {"attn.indexer.wq_b.weight", "self_attn.compressor.indexer.q_b_proj.weight"},
    {"attn.indexer.wq_b.scale", "self_attn.compressor.indexer.q_b_proj.weight_scale_inv"},
    {"attn.indexer.weights_proj.weight", "self_attn.compressor.indexer.scorer.weights_proj.weight"},
    {"attn.indexer.weights_proj.weight", "self_attn.compressor.indexer.weights_proj.weight"},
    {"attn.indexer.compressor.ape", "self_attn.compressor.indexer.position_bias"},
    {"attn.indexer.compressor.wkv.weight", "self_attn.compressor.indexer.kv_proj.weight"},
    {"attn.indexer.compressor.wgate.weight", "self_attn.compressor.indexer.gate_proj.weight"},
    {"attn.indexer.compressor.norm.weight", "self_attn.compressor.indexer.kv_norm.weight"},
    {"ffn.gate.weight", "mlp.gate.weight"},
    {"ffn.gate.tid2eid", "mlp.gate.tid2eid"},
    {"ffn.gate.bias", "mlp.gate.e_score_correction_bias"},
    {"ffn.experts.gate_up_proj", "mlp.experts.gate_up_proj"},
    {"ffn.experts.gate_up_proj.scale", "mlp.experts.gate_up_proj_scale_inv"},
    {"ffn.experts.down_proj", "mlp.experts.down_proj"},
    {"ffn.experts.down_proj.scale", "mlp.experts.down_proj_scale_inv"},
    {"ffn.experts.17.w3.weight", "mlp.experts.17.up_proj.weight"},
    {"ffn.shared_experts.w1.weight", "mlp.shared_experts.gate_proj.weight"},
    {"ffn.shared_experts.w3.weight", "mlp.shared_experts.up_proj.weight"},
    {"ffn.shared_experts.w2.weight", "mlp.shared_experts.down_proj.weight"},
    {"ffn.shared_experts.w2.scale", "mlp.shared_experts.down_proj.weight_scale_inv"},
};

TEST(TensorNamesTest, RuntimeNamesOfALayer) {
  for (const auto& [official, runtime] : kLayerNames) {
    EXPECT_EQ(OfficialTensorName(std::string("model.layers.12.") + runtime),
              std::string("layers.12.") + official);
    EXPECT_EQ(OfficialTensorName(std::string("layers.12.") + runtime), std::string("layers.12.") + official);
    EXPECT_EQ(OfficialTensorName(std::string("mtp.0.") + runtime), std::string("mtp.0.") + official);
  }
}

TEST(TensorNamesTest, AnOfficialNameIsItsOwn) {
  for (const auto& [official, unused] : kLayerNames) {
    const std::string name = std::string("layers.3.") + official;
    EXPECT_EQ(OfficialTensorName(name), name);
    EXPECT_EQ(OfficialTensorName("model." + name), name);
  }
  for (const char* name : {"embed.weight", "head.weight", "norm.weight", "hc_head_fn", "mtp.0.hc_head_base",
                           "mtp.0.e_proj.scale", "mtp.0.norm.weight", "layers.43.enorm.weight"})
    EXPECT_EQ(OfficialTensorName(name), name);
}

TEST(TensorNamesTest, SimilarWordsAreOtherTensors) {
  EXPECT_EQ(OfficialTensorName("model.layers.2.attn.norm.weight"), "layers.2.attn.kv_norm.weight");
  EXPECT_EQ(OfficialTensorName("model.layers.2.attn.compressor.norm.weight"),
            "layers.2.attn.compressor.norm.weight");
  EXPECT_EQ(OfficialTensorName("model.layers.2.attn.q_norm.weight"), "layers.2.attn.q_norm.weight");
  EXPECT_EQ(OfficialTensorName("model.norm.weight"), "norm.weight");
  EXPECT_EQ(OfficialTensorName("model.layers.43.hc_head.hc_fn"), "layers.43.hc_head_fn");
}

TEST(TensorNamesTest, StrangeNamesDoNoHarm) {
  for (const char* name :
       {"", ".", "layers", "layers.", "layers.0", "layers.0.", "layers.0.attn.", "layers.0.ffn.experts.",
        "layers.0.ffn.experts.7", "mtp.", "_scale_inv", "layers.0.attn.compressor.indexer."})
    OfficialTensorName(name);
  EXPECT_EQ(OfficialTensorName("model."), "");
  EXPECT_EQ(OfficialTensorName("something.else"), "something.else");
}

TEST(TensorNamesTest, SchemeByName) {
  EXPECT_EQ(NameSchemeOf("layers.0.attn.wq_a.weight"), NameScheme::kReleased);
  EXPECT_EQ(NameSchemeOf("mtp.0.e_proj.weight"), NameScheme::kReleased);
  EXPECT_EQ(NameSchemeOf("layers.2.attn.indexer.weights_proj.weight"), NameScheme::kReleased);
  EXPECT_EQ(NameSchemeOf("model.layers.0.self_attn.wq_a.weight_scale_inv"), NameScheme::kConverted);
  EXPECT_EQ(NameSchemeOf("layers.0.mlp.gate.e_score_correction_bias"), NameScheme::kConverted);
  EXPECT_EQ(NameSchemeOf("model.layers.0.attn.norm.weight"), NameScheme::kSavePretrained);
  EXPECT_EQ(NameSchemeOf("model.layers.0.self_attn.q_a_proj.weight"), NameScheme::kRuntime);
  EXPECT_EQ(NameSchemeOf("model.layers.0.mlp.experts.gate_up_proj"), NameScheme::kRuntime);
}

}  // namespace
}  // namespace cachalot

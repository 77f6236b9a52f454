// config.json in any of its three spellings.

#include <cmath>
#include <nlohmann/json.hpp>

#include "common/base/log.h"
#include "common/model/config.h"
#include "tests/fuzz/fuzz.h"

namespace cachalot::fuzz {
namespace {

using Json = nlohmann::json;

Json Released(const ModelConfig& c) {
  Json ratios = Json::array(), mlp = Json::array();
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    ratios.push_back(c.ratio(i));
    mlp.push_back(c.hash_layer[i] ? "hash_moe" : "moe");
  }
  Json json = {{"model_type", "deepseek_v4"},
               {"vocab_size", c.vocab_size},
               {"hidden_size", c.hidden_size},
               {"num_hidden_layers", c.num_hidden_layers},
               {"num_attention_heads", c.num_attention_heads},
               {"head_dim", c.head_dim},
               {"qk_rope_head_dim", c.rope_dim},
               {"q_lora_rank", c.q_lora_rank},
               {"o_lora_rank", c.o_lora_rank},
               {"o_groups", c.o_groups},
               {"sliding_window", c.sliding_window},
               {"index_n_heads", c.index_n_heads},
               {"index_head_dim", c.index_head_dim},
               {"index_topk", c.index_topk},
               {"n_routed_experts", c.n_routed_experts},
               {"num_experts_per_tok", c.num_experts_per_tok},
               {"moe_intermediate_size", c.moe_intermediate_size},
               {"hc_mult", c.hc_mult},
               {"hc_sinkhorn_iters", c.hc_sinkhorn_iters},
               {"routed_scaling_factor", c.routed_scaling_factor},
               {"swiglu_limit", c.swiglu_limit},
               {"hc_eps", c.hc_eps},
               {"rms_norm_eps", c.rms_norm_eps},
               {"max_position_embeddings", c.max_position_embeddings},
               {"bos_token_id", c.bos_token_id},
               {"eos_token_id", c.eos_token_ids},
               {"rope_theta", c.rope.theta},
               {"compress_rope_theta", c.rope.compress_theta},
               {"compress_ratios", ratios},
               {"mlp_layer_types", mlp}};
  if (c.rope.yarn) {
    const YarnConfig& yarn = c.rope.yarn_config;
    json["rope_scaling"] = {{"type", "yarn"},
                            {"factor", yarn.factor},
                            {"original_max_position_embeddings", yarn.original_max_position_embeddings},
                            {"beta_fast", yarn.beta_fast},
                            {"beta_slow", yarn.beta_slow}};
  }
  return json;
}

void CheckConfig(const ModelConfig& c) {
  const auto layers = static_cast<size_t>(c.num_hidden_layers);
  CHECK(layers > 0 && c.layers.size() == layers && c.hash_layer.size() == layers && !c.eos_token_ids.empty());
  CHECK(c.rope_dim >= 2 && c.rope_dim % 2 == 0 && c.rope_dim <= c.head_dim && c.rope_dim <= 512);
  CHECK(c.hc_mult >= 1 && c.hc_mult <= 8);
  CHECK(c.num_experts_per_tok <= c.n_routed_experts && c.num_attention_heads % c.o_groups == 0);
  for (float value : {c.routed_scaling_factor, c.swiglu_limit, c.rms_norm_eps})
    CHECK(std::isfinite(value) && value > 0);
  CHECK(std::isfinite(c.hc_eps) && c.hc_eps >= 0);
  for (int id : c.eos_token_ids) CHECK(id >= 0 && id < c.vocab_size);
  CHECK(c.bos_token_id >= 0 && c.bos_token_id < c.vocab_size);
  for (bool compress : {false, true})
    for (float frequency : InverseFrequencies(c, compress)) CHECK(std::isfinite(frequency) && frequency >= 0);
}

}  // namespace

std::vector<Seed> Seeds() {
  const Json base = {
      {"model_type", "deepseek_v4"}, {"num_hidden_layers", 4}, {"compress_ratios", {0, 4, 128, 4}}};
  Json yarn = base, transformers = base, both = base, dspark = base, wide = base;
  yarn["rope_scaling"] = {{"type", "yarn"},
                          {"factor", 16},
                          {"original_max_position_embeddings", 65536},
                          {"beta_fast", 32},
                          {"beta_slow", 1}};
  transformers.erase("compress_ratios");
  transformers["layer_types"] = {"sliding_attention", "compressed_sparse_attention",
                                 "heavily_compressed_attention", "compressed_sparse_attention"};
  transformers["mlp_layer_types"] = {"hash_moe", "moe", "moe", "moe"};
  transformers["rope_parameters"] = {
      {"main", {{"rope_type", "default"}, {"rope_theta", 10000}}},
      {"compress", {{"rope_type", "yarn"}, {"rope_theta", 160000.5}, {"factor", 4}}}};
  both["layer_types"] = transformers["layer_types"];
  both["eos_token_id"] = {1, 2};
  both["compress_rates"] = {{"compressed_sparse_attention", 4}, {"heavily_compressed_attention", 128}};
  dspark["dspark_target_layer_ids"] = {1, 3};
  dspark["swiglu_limit"] = 7.5;
  wide["partial_rotary_factor"] = 0.25;
  wide["head_dim"] = 256;
  const Json own = {{"dim", 256},
                    {"n_layers", 2},
                    {"n_heads", 8},
                    {"head_dim", 64},
                    {"rope_head_dim", 16},
                    {"o_groups", 2},
                    {"window_size", 64},
                    {"n_hash_layers", 1},
                    {"route_scale", 2.5},
                    {"norm_eps", 1e-5},
                    {"original_seq_len", 4096},
                    {"rope_factor", 8},
                    {"compress_ratios", {0, 4}}};
  return {{"released", base.dump()},      {"yarn", yarn.dump()}, {"transformers", transformers.dump()},
          {"both", both.dump()},          {"own", own.dump()},   {"dspark", dspark.dump()},
          {"partial_rotary", wide.dump()}};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cachalot;
  [[maybe_unused]] static const bool quiet = InitLog("fuzz", "error");
  const auto config = ModelConfig::Parse(std::string(fuzz::Text(data, size)), "fuzz");
  if (!config.ok()) {
    CHECK(config.status().code() == StatusCode::kInvalidArgument);
    return 0;
  }
  fuzz::CheckConfig(*config);
  const auto again = ModelConfig::Parse(fuzz::Released(*config).dump(), "again");
  CHECK_MSG(again.ok(), StatusMessage(again.status()));
  CHECK(again->Canonical() == config->Canonical());
  return 0;
}

#include "common/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "tests/common/loader/tensor_files.h"

namespace cachalot {
namespace {

using Json = nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::ReadText;
using testing::Source;

Json Tiny(const std::string& file = "config.json") {
  return Json::parse(ReadText(Source("tests/golden/oracle/tiny/" + file)));
}

ModelConfig ParseOrDie(const Json& json) {
  const auto config = ModelConfig::Parse(json.dump(), "config.json");
  EXPECT_TRUE(config.ok()) << StatusMessage(config.status());
  return config.ok() ? *config : ModelConfig{};
}

/// The refusal of tiny's released form after `edit`; "" if it is accepted.
std::string Refusal(const std::function<void(Json&)>& edit,
                    const std::string& file = "config.official.json") {
  Json json = Tiny(file);
  edit(json);
  const auto config = ModelConfig::Parse(json.dump(), "dir/config.json");
  if (config.ok()) return "";
  EXPECT_EQ(config.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(StatusMessage(config.status()), HasSubstr("dir/config.json"));
  return StatusMessage(config.status());
}

/// The refusal of one changed key.
std::string With(const std::string& key, const Json& value,
                 const std::string& file = "config.official.json") {
  return Refusal([&](Json& json) { json[key] = value; }, file);
}

/// A config with nothing but what has no default.
Json Minimal() {
  Json ratios = {0, 0};
  for (int i = 0; i < 20; ++i) ratios.insert(ratios.end(), {4, 128});
  ratios.insert(ratios.end(), {4, 0});
  return {{"model_type", "deepseek_v4"}, {"compress_ratios", ratios}};
}

TEST(ConfigTest, BothExportedFormsAreOneConfig) {
  const ModelConfig exported = ParseOrDie(Tiny()), released = ParseOrDie(Tiny("config.official.json"));
  EXPECT_EQ(exported.Canonical(), released.Canonical());
  EXPECT_EQ(released.vocab_size, 512);
  EXPECT_EQ(released.rope_dim, 8);
  EXPECT_THAT(released.layers, ElementsAre(LayerKind::kWindow, LayerKind::kWindow, LayerKind::kCsa,
                                           LayerKind::kHca, LayerKind::kCsa, LayerKind::kHca));
  EXPECT_THAT(exported.hash_layer, ElementsAre(true, true, false, false, false, false));
  EXPECT_THAT(exported.eos_token_ids, ElementsAre(1));
  EXPECT_FALSE(exported.rope.yarn);
}

TEST(ConfigTest, YarnInBothForms) {
  Json exported = Tiny(), released = Tiny("config.official.json");
  const Json yarn = {{"rope_type", "yarn"},
                     {"factor", 16},
                     {"original_max_position_embeddings", 256},
                     {"beta_fast", 32},
                     {"beta_slow", 1}};
  exported["rope_parameters"]["compress"].update(yarn);
  released["rope_scaling"] = yarn;
  released["rope_scaling"]["rope_theta"] = 10000.0;  // means nothing here
  const ModelConfig a = ParseOrDie(exported), b = ParseOrDie(released);
  EXPECT_TRUE(a.rope.yarn);
  EXPECT_EQ(a.Canonical(), b.Canonical());
  EXPECT_NE(a.Canonical(), ParseOrDie(Tiny()).Canonical());
  released["rope_scaling"].erase("rope_type");
  released["rope_scaling"]["type"] = "yarn";
  EXPECT_EQ(a.Canonical(), ParseOrDie(released).Canonical());
}

TEST(ConfigTest, PrivateNames) {
  Json json = Tiny("config.official.json");
  const std::pair<const char*, const char*> names[] = {
      {"hidden_size", "dim"},
      {"num_hidden_layers", "n_layers"},
      {"num_attention_heads", "n_heads"},
      {"moe_intermediate_size", "moe_inter_dim"},
      {"num_experts_per_tok", "n_activated_experts"},
      {"qk_rope_head_dim", "rope_head_dim"},
      {"sliding_window", "window_size"},
      {"num_hash_layers", "n_hash_layers"},
  };
  for (const auto& [released, own] : names) {
    json[own] = json.at(released);
    json.erase(released);
  }
  for (const char* key : {"model_type", "architectures", "tie_word_embeddings"}) json.erase(key);
  json.update({{"score_func", "sqrtsoftplus"}, {"route_scale", 1.5}, {"n_mtp_layers", 1}});
  EXPECT_EQ(ParseOrDie(json).Canonical(), ParseOrDie(Tiny()).Canonical());

  json.update({{"original_seq_len", 65536}, {"rope_factor", 16}, {"beta_fast", 32}, {"beta_slow", 1}});
  const ModelConfig yarn = ParseOrDie(json);
  EXPECT_TRUE(yarn.rope.yarn);
  EXPECT_EQ(yarn.rope.yarn_config.factor, 16);
  EXPECT_EQ(yarn.rope.yarn_config.original_max_position_embeddings, 65536);
}

TEST(ConfigTest, MissingKeysHaveFlashValues) {
  const ModelConfig c = ParseOrDie(Minimal());
  EXPECT_EQ(c.vocab_size, 129280);
  EXPECT_EQ(c.hidden_size, 4096);
  EXPECT_EQ(c.num_hidden_layers, 43);
  EXPECT_EQ(c.num_attention_heads, 64);
  EXPECT_EQ(c.head_dim, 512);
  EXPECT_EQ(c.rope_dim, 64);
  EXPECT_EQ(c.q_lora_rank, 1024);
  EXPECT_EQ(c.o_lora_rank, 1024);
  EXPECT_EQ(c.o_groups, 8);
  EXPECT_EQ(c.sliding_window, 128);
  EXPECT_EQ(c.index_n_heads, 64);
  EXPECT_EQ(c.index_head_dim, 128);
  EXPECT_EQ(c.index_topk, 512);
  EXPECT_EQ(c.n_routed_experts, 256);
  EXPECT_EQ(c.num_experts_per_tok, 6);
  EXPECT_EQ(c.moe_intermediate_size, 2048);
  EXPECT_EQ(c.routed_scaling_factor, 1.5f);
  EXPECT_EQ(c.swiglu_limit, 10.f);
  EXPECT_EQ(c.hc_mult, 4);
  EXPECT_EQ(c.hc_sinkhorn_iters, 20);
  EXPECT_EQ(c.hc_eps, 1e-6f);
  EXPECT_EQ(c.rms_norm_eps, 1e-6f);
  EXPECT_EQ(c.max_position_embeddings, 1048576);
  EXPECT_EQ(c.bos_token_id, 0);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(1));
  EXPECT_EQ(c.rope.theta, 10000);
  EXPECT_EQ(c.rope.compress_theta, 160000);
  // 44 ratios, the last of which belongs to the MTP layer: layer 42 is CSA (model.md 11.9).
  ASSERT_EQ(c.layers.size(), 43u);
  EXPECT_EQ(c.layers[42], LayerKind::kCsa);
  EXPECT_EQ(std::count(c.layers.begin(), c.layers.end(), LayerKind::kHca), 20);
  ASSERT_EQ(c.hash_layer.size(), 43u);
  EXPECT_EQ(std::count(c.hash_layer.begin(), c.hash_layer.end(), true), 3);
  EXPECT_TRUE(c.hash_layer[2]);
}

TEST(ConfigTest, HashLayersOfAnExportAreTheListed) {
  Json json = Tiny();
  json["mlp_layer_types"] = Json::array({"moe", "moe", "moe", "moe", "moe", "hash_moe", "hash_moe"});
  EXPECT_THAT(ParseOrDie(json).hash_layer, ElementsAre(false, false, false, false, false, true));
}

TEST(ConfigTest, RopeDimFromThePartialFactor) {
  Json json = Tiny();
  json.erase("qk_rope_head_dim");
  EXPECT_EQ(ParseOrDie(json).rope_dim, 8);
  json["partial_rotary_factor"] = 0.3;  // 9.6 channels
  EXPECT_THAT(Refusal([&](Json& j) { j = json; }), HasSubstr("partial_rotary_factor"));
}

TEST(ConfigTest, EosIsOneIdOrSeveral) {
  Json json = Tiny();
  json["eos_token_id"] = {1, 7};
  EXPECT_THAT(ParseOrDie(json).eos_token_ids, ElementsAre(1, 7));
  EXPECT_THAT(With("eos_token_id", Json::array()), HasSubstr("eos_token_id"));
  EXPECT_THAT(With("eos_token_id", {1, 512}), HasSubstr("eos_token_id[1]"));
  EXPECT_THAT(With("eos_token_id", "1"), HasSubstr("eos_token_id"));
  EXPECT_THAT(With("bos_token_id", 512), HasSubstr("bos_token_id"));
}

TEST(ConfigTest, DSparkKeysConcernTheDraftOnly) {
  Json json = Minimal();
  json["compress_ratios"].insert(json["compress_ratios"].end(), {0, 0});
  json.update(
      {{"dspark_block_size", 5}, {"dspark_target_layer_ids", {40, 41, 42}}, {"dspark_markov_rank", 256}});
  EXPECT_EQ(ParseOrDie(json).Canonical(), ParseOrDie(Minimal()).Canonical());
  json["dspark_target_layer_ids"] = {41, 42, 43};
  EXPECT_FALSE(ModelConfig::Parse(json.dump(), "config.json").ok());
}

TEST(ConfigTest, RefusesOtherArchitectures) {
  EXPECT_THAT(With("model_type", "deepseek_v3"),
              AllOf(HasSubstr("key 'model_type'"), HasSubstr("wanted \"deepseek_v4\", got \"deepseek_v3\"")));
  EXPECT_THAT(With("model_type", "deepseek_v41"), HasSubstr("model_type"));
  EXPECT_THAT(Refusal([](Json& j) { j.erase("model_type"); }), HasSubstr("got nothing"));
  EXPECT_THAT(With("scoring_func", "sigmoid"), HasSubstr("scoring_func"));
  EXPECT_THAT(With("n_shared_experts", 2), HasSubstr("n_shared_experts"));
  EXPECT_THAT(With("norm_topk_prob", false), HasSubstr("norm_topk_prob"));
  EXPECT_THAT(With("tie_word_embeddings", true), HasSubstr("tie_word_embeddings"));
}

TEST(ConfigTest, RefusesBrokenSchedules) {
  EXPECT_THAT(Refusal([](Json& j) { j.erase("compress_ratios"); }),
              AllOf(HasSubstr("compress_ratios"), HasSubstr("layer_types")));
  EXPECT_THAT(With("compress_ratios", {0, 0, 4, 8, 4, 128}),
              AllOf(HasSubstr("'compress_ratios[3]'"), HasSubstr("wanted 0, 4 or 128, got 8")));
  EXPECT_THAT(With("compress_ratios", {0, 0, 4}), HasSubstr("got 3 entries"));
  EXPECT_THAT(With("compress_ratios", 4), HasSubstr("wanted a list"));
  EXPECT_THAT(With("layer_types", {"a", "b", "c", "d", "e", "f"}, "config.json"),
              HasSubstr("'layer_types[0]'"));
  // Both schedules at once must agree.
  EXPECT_EQ(With("compress_ratios", {0, 0, 4, 128, 4, 128}, "config.json"), "");
  EXPECT_THAT(With("compress_ratios", {0, 0, 4, 128, 4, 4}, "config.json"), HasSubstr("'layer_types[5]'"));
  EXPECT_THAT(With("mlp_layer_types", {"moe", "moe", "moe", "moe", "moe", "dense"}, "config.json"),
              HasSubstr("'mlp_layer_types[5]'"));
  EXPECT_THAT(With("num_hash_layers", 7), HasSubstr("num_hash_layers"));
}

TEST(ConfigTest, RefusesWrongTypes) {
  EXPECT_THAT(With("hidden_size", "64"),
              AllOf(HasSubstr("key 'hidden_size'"), HasSubstr("integer"), HasSubstr("\"64\"")));
  EXPECT_THAT(With("hidden_size", 64.0), HasSubstr("got 64.0"));
  EXPECT_THAT(With("hidden_size", nullptr), HasSubstr("got null"));
  EXPECT_THAT(With("hidden_size", Json::array()), HasSubstr("hidden_size"));
  EXPECT_THAT(With("swiglu_limit", "10"), HasSubstr("swiglu_limit"));
  EXPECT_THAT(With("vocab_size", std::numeric_limits<uint64_t>::max()), HasSubstr("vocab_size"));
  EXPECT_THAT(With("rope_scaling", 3), HasSubstr("rope_scaling"));
  EXPECT_THAT(With("rope_scaling", {{"type", "yarn"}, {"factor", "16"}}),
              HasSubstr("rope_scaling: key 'factor'"));
  EXPECT_THAT(With("rope_scaling", {{"type", "linear"}}), HasSubstr("yarn or default"));
  EXPECT_THAT(With("rope_parameters", {{"rope_theta", 1e4}}, "config.json"),
              HasSubstr("rope_parameters.main"));
  for (const char* text : {"", "[]", "{", "7", "{\"a\":1}x"}) {
    EXPECT_EQ(ModelConfig::Parse(text, "f").status().code(), StatusCode::kInvalidArgument) << text;
  }
}

TEST(ConfigTest, RefusesImpossibleValues) {
  EXPECT_THAT(With("qk_rope_head_dim", 7), AllOf(HasSubstr("even number"), HasSubstr("got 7")));
  EXPECT_THAT(With("qk_rope_head_dim", 34), HasSubstr("in [2, 32], got 34"));
  Json wide = Tiny("config.official.json");
  wide["head_dim"] = 2048;
  wide["qk_rope_head_dim"] = 514;
  EXPECT_THAT(StatusMessage(ModelConfig::Parse(wide.dump(), "f").status()), HasSubstr("in [2, 512], got 514"));
  EXPECT_THAT(With("hc_mult", 9), HasSubstr("hc_mult': wanted an integer in [1, 8], got 9"));
  EXPECT_THAT(With("num_experts_per_tok", 17), HasSubstr("at most n_routed_experts = 16, got 17"));
  EXPECT_THAT(With("o_groups", 3), HasSubstr("a divisor of num_attention_heads = 4, got 3"));
  EXPECT_THAT(With("index_head_dim", 4), HasSubstr("index_head_dim"));
  EXPECT_THAT(With("hidden_size", 0), HasSubstr("hidden_size"));
  EXPECT_THAT(With("num_hidden_layers", -1), HasSubstr("num_hidden_layers"));
  EXPECT_THAT(With("num_hidden_layers", 1 << 20), HasSubstr("num_hidden_layers"));
  EXPECT_THAT(With("swiglu_limit", 0), HasSubstr("swiglu_limit"));
  EXPECT_THAT(With("rms_norm_eps", 0), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(With("rope_theta", 1), HasSubstr("rope_theta"));
  EXPECT_THAT(With("hc_sinkhorn_iters", 0), HasSubstr("hc_sinkhorn_iters"));
}

TEST(ConfigTest, CanonicalSeesEveryField) {
  const std::string plain = ParseOrDie(Tiny("config.official.json")).Canonical();
  const std::pair<const char*, Json> changes[] = {{"vocab_size", 513},
                                                  {"hidden_size", 65},
                                                  {"num_attention_heads", 6},
                                                  {"head_dim", 34},
                                                  {"qk_rope_head_dim", 6},
                                                  {"q_lora_rank", 33},
                                                  {"o_lora_rank", 17},
                                                  {"o_groups", 1},
                                                  {"sliding_window", 17},
                                                  {"index_n_heads", 17},
                                                  {"index_head_dim", 17},
                                                  {"index_topk", 9},
                                                  {"n_routed_experts", 17},
                                                  {"num_experts_per_tok", 3},
                                                  {"moe_intermediate_size", 33},
                                                  {"routed_scaling_factor", 2},
                                                  {"swiglu_limit", 7},
                                                  {"hc_mult", 3},
                                                  {"hc_sinkhorn_iters", 3},
                                                  {"hc_eps", 1e-5},
                                                  {"rms_norm_eps", 1e-5},
                                                  {"bos_token_id", 3},
                                                  {"eos_token_id", {1, 2}},
                                                  {"max_position_embeddings", 4097},
                                                  {"rope_theta", 20000},
                                                  {"compress_rope_theta", 7e4},
                                                  {"num_hash_layers", 1},
                                                  {"compress_ratios", {0, 0, 4, 4, 4, 4}},
                                                  {"rope_scaling", {{"type", "yarn"}}}};
  for (const auto& [key, value] : changes) {
    Json json = Tiny("config.official.json");
    json[key] = value;
    EXPECT_NE(ParseOrDie(json).Canonical(), plain) << key;
  }
}

TEST(ConfigTest, InverseFrequenciesOfTheSpec) {
  Json json = Minimal();
  json["rope_scaling"] = {{"type", "yarn"},
                          {"factor", 16},
                          {"original_max_position_embeddings", 65536},
                          {"beta_fast", 32},
                          {"beta_slow", 1}};
  const ModelConfig config = ParseOrDie(json);
  const std::vector<float> compress = InverseFrequencies(config, true),
                           plain = InverseFrequencies(config, false);
  ASSERT_EQ(compress.size(), 32u);
  // The printed decimals decide the float, except for [25]: there they lie at the middle of two floats, so all
  // that can be asked is one that prints like this.
  const struct {
    int i;
    double value, last_digit;
  } golden[] = {{0, 1, 0},
                {1, 0.687656022, 1e-9},
                {15, 3.635538584e-3, 1e-12},
                {16, 2.265625e-3, 0},
                {20, 2.969777783e-4, 1e-13},
                {24, 1.953125e-5, 0},
                {25, 5.372312671e-6, 1e-15},
                {31, 5.680529037e-7, 1e-16}};
  for (const auto& [i, value, last_digit] : golden) {
    const auto least = static_cast<float>(value - last_digit / 2),
               most = static_cast<float>(value + last_digit / 2);
    EXPECT_EQ(least == most, i != 25) << i;
    EXPECT_GE(compress[i], least) << i;
    EXPECT_LE(compress[i], most) << i;
  }
  // Every entry is the formula in double, rounded once.
  for (int i = 0; i < 32; ++i) {
    const double unblended = std::pow(160000.0, -i / 32.0), ramp = std::clamp((i - 15) / 10.0, 0.0, 1.0);
    EXPECT_EQ(compress[i], static_cast<float>(unblended * (1 - ramp) + unblended / 16 * ramp)) << i;
    EXPECT_EQ(plain[i], static_cast<float>(std::pow(10000.0, -i / 32.0))) << i;  // no YaRN here
  }
  EXPECT_EQ(InverseFrequencies(ParseOrDie(Minimal()), true)[31], 9.088846459e-6f);
}

TEST(ConfigTest, RefusesDeepNesting) {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  for (const char* key : {"model_type", "vocab_size", "rope_theta", "compress_ratios"}) {
    const auto config = ModelConfig::Parse("{\"" + std::string(key) + "\": " + deep + "}", "dir/config.json");
    EXPECT_EQ(config.status().code(), StatusCode::kInvalidArgument) << key;
    EXPECT_EQ(StatusMessage(config.status()), "dir/config.json: wanted at most 64 levels of nesting");
  }
}

TEST(ConfigTest, LoadsFromADirectory) {
  EXPECT_TRUE(ModelConfig::Load(Source("tests/golden/oracle/tiny")).ok());
  EXPECT_EQ(ModelConfig::Load(Source("tests")).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace cachalot

#include "common/model/config.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "common/base/json_depth.h"
#include "common/base/log.h"
#include "common/kernels/limits.h"

namespace cachalot {
namespace {

using Json = nlohmann::json;
using Keys = std::initializer_list<const char*>;

// Bounds on one dimension, far above any real model: products of two of them stay far from overflowing int64.
constexpr int64_t kMaxDimension = 1 << 24;
constexpr int64_t kMaxLayers = 1024, kMaxPosition = int64_t{1} << 40;
// And on a real number: it and the RoPE frequencies made of it stay finite and above 0 in fp32.
// The least is the fp32 number: what has been read and is written again is not refused.
constexpr double kLeastReal = 1e-12f, kMostReal = 1e15;

/// Typed look-ups with defaults. The first refusal is kept in `status` and makes every later call return its
/// default, so that the list of fields below stays a list.
class FieldReader {
 public:
  FieldReader(const Json& object, std::string file) : object_(object), file_(std::move(file)) {}

  const Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }

  void Refuse(const std::string& key, const std::string& wanted, const std::string& got) {
    if (!status_.ok()) return;
    status_ =
        InvalidArgument(file_ + ": key '" + key + "': wanted " + wanted + ", got " + got.substr(0, 200));
  }

  /// The first of the spellings that is there, and its name in `key`; nullptr: none.
  const Json* Find(Keys keys, std::string* key = nullptr) const {
    for (const char* name : keys) {
      const auto at = object_.find(name);
      if (at == object_.end()) continue;
      if (key) *key = name;
      return &*at;
    }
    return nullptr;
  }
  /// As Find, but null counts as absent: for the keys that exporters write as null when a feature is off.
  const Json* FindNonNull(Keys keys, std::string* key = nullptr) const {
    const Json* value = Find(keys, key);
    return value && value->is_null() ? nullptr : value;
  }

  int64_t Int(Keys keys, int64_t fallback, int64_t least, int64_t most = kMaxDimension) {
    std::string key;
    const Json* value = Find(keys, &key);
    return value ? AsInt(key, *value, fallback, least, most) : fallback;
  }
  int64_t AsInt(const std::string& key, const Json& value, int64_t fallback, int64_t least, int64_t most) {
    const bool fits =
        value.is_number_unsigned()
            ? value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())
            : value.is_number_integer();
    if (fits && value.get<int64_t>() >= least && value.get<int64_t>() <= most) return value.get<int64_t>();
    Refuse(key, "an integer in [" + std::to_string(least) + ", " + std::to_string(most) + "]", value.dump());
    return fallback;
  }

  /// A number > `above`, or >= it if `or_equal`, that is 0 or in [kLeastReal, kMostReal].
  double Real(Keys keys, double fallback, double above, bool or_equal = false) {
    std::string key;
    const Json* value = Find(keys, &key);
    if (!value) return fallback;
    if (value->is_number()) {
      const double x = value->get<double>();
      const bool sized = x == 0 || (x >= kLeastReal && x <= kMostReal);
      if (sized && (x > above || (or_equal && x == above))) return x;
    }
    Refuse(key, std::string("a number ") + (or_equal ? ">= " : "> ") + Json(above).dump() + " in fp32's reach",
           value->dump());
    return fallback;
  }

  /// Parts of the architecture that the model library has no other way to compute: present only to be
  /// verified.
  void Fixed(Keys keys, const Json& wanted) {
    std::string key;
    const Json* value = FindNonNull(keys, &key);
    if (value && *value != wanted) Refuse(key, wanted.dump(), value->dump());
  }

  /// A list of at least `count` entries; nullptr: absent or refused. What follows the first `count` belongs
  /// to MTP or draft layers (model.md 1.2).
  const Json* List(Keys keys, int count) {
    std::string key;
    const Json* value = FindNonNull(keys, &key);
    if (!value) return nullptr;
    if (value->is_array() && value->size() >= static_cast<size_t>(count)) return value;
    Refuse(key, "a list of at least num_hidden_layers = " + std::to_string(count) + " entries",
           value->is_array() ? std::to_string(value->size()) + " entries" : value->dump());
    return nullptr;
  }

  FieldReader Nested(const Json& object, const std::string& key) const {
    return {object, file_ + ": " + key};
  }
  void Take(const FieldReader& nested) {
    if (status_.ok()) status_ = nested.status_;
  }

 private:
  const Json& object_;
  std::string file_;
  Status status_;
};

std::string Entry(const std::string& key, size_t index) { return key + "[" + std::to_string(index) + "]"; }

void ReadSizes(FieldReader& in, ModelConfig* c) {
  const auto size = [&](Keys keys, int fallback) { return static_cast<int>(in.Int(keys, fallback, 1)); };
  c->vocab_size = size({"vocab_size"}, 129280);
  c->hidden_size = size({"hidden_size", "dim"}, 4096);
  c->num_hidden_layers = static_cast<int>(in.Int({"num_hidden_layers", "n_layers"}, 43, 1, kMaxLayers));
  c->num_attention_heads = size({"num_attention_heads", "n_heads"}, 64);
  c->head_dim = size({"head_dim"}, 512);
  c->q_lora_rank = size({"q_lora_rank"}, 1024);
  c->o_lora_rank = size({"o_lora_rank"}, 1024);
  c->o_groups = size({"o_groups"}, 8);
  c->sliding_window = size({"sliding_window", "window_size"}, 128);
  c->index_n_heads = size({"index_n_heads"}, 64);
  c->index_head_dim = size({"index_head_dim"}, 128);
  c->index_topk = size({"index_topk"}, 512);
  c->n_routed_experts = size({"n_routed_experts"}, 256);
  c->num_experts_per_tok = size({"num_experts_per_tok", "n_activated_experts"}, 6);
  c->moe_intermediate_size = size({"moe_intermediate_size", "moe_inter_dim"}, 2048);
  c->hc_mult = static_cast<int>(in.Int({"hc_mult"}, 4, 1, kMaxStreams));
  c->hc_sinkhorn_iters = static_cast<int>(in.Int({"hc_sinkhorn_iters"}, 20, 1, 1000));
  c->routed_scaling_factor = static_cast<float>(in.Real({"routed_scaling_factor", "route_scale"}, 1.5, 0));
  c->swiglu_limit = static_cast<float>(in.Real({"swiglu_limit"}, 10, 0));
  c->hc_eps = static_cast<float>(in.Real({"hc_eps"}, 1e-6, 0, /*or_equal=*/true));
  c->rms_norm_eps = static_cast<float>(in.Real({"rms_norm_eps", "norm_eps"}, 1e-6, 0));
  c->max_position_embeddings = in.Int({"max_position_embeddings"}, 1048576, 1, kMaxPosition);
}

void CheckFixed(FieldReader& in) {
  in.Fixed({"n_shared_experts"}, 1);
  in.Fixed({"num_key_value_heads"}, 1);
  in.Fixed({"scoring_func", "score_func"}, "sqrtsoftplus");
  in.Fixed({"topk_method"}, "noaux_tc");
  in.Fixed({"norm_topk_prob"}, true);
  in.Fixed({"hidden_act"}, "silu");
  in.Fixed({"attention_bias"}, false);
  in.Fixed({"mlp_bias"}, false);
  in.Fixed({"tie_word_embeddings"}, false);
  in.Fixed({"compress_rates"}, {{"compressed_sparse_attention", 4}, {"heavily_compressed_attention", 128}});
}

void ReadTokens(FieldReader& in, ModelConfig* c) {
  c->bos_token_id = static_cast<int>(in.Int({"bos_token_id"}, 0, 0, c->vocab_size - 1));
  std::string key;
  const Json* eos = in.Find({"eos_token_id"}, &key);
  if (eos && eos->is_array()) {
    if (eos->empty()) in.Refuse(key, "at least one id", "[]");
    for (size_t i = 0; i < eos->size(); ++i) {
      c->eos_token_ids.push_back(
          static_cast<int>(in.AsInt(Entry(key, i), (*eos)[i], 0, 0, c->vocab_size - 1)));
    }
  } else {
    c->eos_token_ids = {static_cast<int>(in.Int({"eos_token_id"}, 1, 0, c->vocab_size - 1))};
  }
}

/// model.md 1.2. There is no default schedule: the one that transformers falls back to fits no released model
/// (model.md 11.5).
void ReadLayerKinds(FieldReader& in, ModelConfig* c) {
  const int count = c->num_hidden_layers;
  const Json* ratios = in.List({"compress_ratios"}, count);
  const Json* types = in.List({"layer_types"}, count);
  if (!in.ok()) return;
  if (!ratios && !types) {
    in.Refuse("compress_ratios", "the schedule of the layers here or in 'layer_types'", "neither");
    return;
  }
  const auto kind_of_ratio = [&](const Json& value, const std::string& key) {
    if (value == 0) return LayerKind::kWindow;
    if (value == 4) return LayerKind::kCsa;
    if (value == 128) return LayerKind::kHca;
    in.Refuse(key, "0, 4 or 128", value.dump());
    return LayerKind::kWindow;
  };
  const auto kind_of_type = [&](const Json& value, const std::string& key) {
    if (value == "sliding_attention") return LayerKind::kWindow;
    if (value == "compressed_sparse_attention") return LayerKind::kCsa;
    if (value == "heavily_compressed_attention") return LayerKind::kHca;
    in.Refuse(key, "sliding_attention, compressed_sparse_attention or heavily_compressed_attention",
              value.dump());
    return LayerKind::kWindow;
  };
  for (int i = 0; i < count; ++i) {
    c->layers.push_back(ratios ? kind_of_ratio((*ratios)[i], Entry("compress_ratios", i))
                               : kind_of_type((*types)[i], Entry("layer_types", i)));
    if (ratios && types && kind_of_type((*types)[i], Entry("layer_types", i)) != c->layers.back()) {
      in.Refuse(Entry("layer_types", i), "the kind that compress_ratios gives, " + (*ratios)[i].dump(),
                (*types)[i].dump());
    }
  }
}

void ReadHashLayers(FieldReader& in, ModelConfig* c) {
  const int count = c->num_hidden_layers;
  const Json* types = in.List({"mlp_layer_types"}, count);
  // An export of transformers has mlp_layer_types instead: there the default of 3 would invent hash layers.
  const int64_t hashed = in.Int({"num_hash_layers", "n_hash_layers"}, std::min(count, 3), 0, count);
  for (int i = 0; i < count; ++i) {
    if (types && (*types)[i] != "hash_moe" && (*types)[i] != "moe") {
      in.Refuse(Entry("mlp_layer_types", i), "hash_moe or moe", (*types)[i].dump());
    }
    c->hash_layer.push_back(types ? (*types)[i] == "hash_moe" : i < hashed);
  }
}

/// Reads the yarn settings of `in` if its type is yarn; false for plain RoPE. Key names: `type` in older
/// files.
bool ReadYarn(FieldReader& in, YarnConfig* yarn) {
  std::string key;
  const Json* type = in.FindNonNull({"rope_type", "type"}, &key);
  if (!type || *type == "default") return false;
  if (*type != "yarn") {
    in.Refuse(key, "yarn or default", type->dump());
    return false;
  }
  yarn->factor = in.Real({"factor"}, 16, 0);
  yarn->original_max_position_embeddings = in.Real({"original_max_position_embeddings"}, 65536, 0);
  yarn->beta_fast = in.Real({"beta_fast"}, 32, 0);
  yarn->beta_slow = in.Real({"beta_slow"}, 1, 0);
  return true;
}

/// `parameters`: {"main": {...}, "compress": {...}}, as transformers writes it.
void ReadRopeParameters(FieldReader& in, const Json& parameters, RopeConfig* rope) {
  for (const char* part : {"main", "compress"}) {
    const std::string key = std::string("rope_parameters.") + part;
    if (!parameters.is_object() || !parameters.contains(part) || !parameters[part].is_object()) {
      in.Refuse(key, "an object", parameters.dump());
      return;
    }
    FieldReader nested = in.Nested(parameters[part], key);
    const bool compress = std::string_view(part) == "compress";
    double& theta = compress ? rope->compress_theta : rope->theta;
    theta = nested.Real({"rope_theta"}, theta, 1);
    YarnConfig unused;
    const bool yarn = ReadYarn(nested, compress ? &rope->yarn_config : &unused);
    if (compress) rope->yarn = yarn;
    if (!compress && yarn)
      nested.Refuse("rope_type", "default: window-only layers have no YaRN", "yarn");
    in.Take(nested);
  }
}

void ReadRope(FieldReader& in, ModelConfig* c) {
  RopeConfig& rope = c->rope;
  rope.theta = in.Real({"rope_theta"}, 10000, 1);
  rope.compress_theta = in.Real({"compress_rope_theta"}, 160000, 1);
  if (const Json* parameters = in.FindNonNull({"rope_parameters"})) {
    ReadRopeParameters(in, *parameters, &rope);
  } else if (const Json* scaling = in.FindNonNull({"rope_scaling"})) {
    if (!scaling->is_object()) return in.Refuse("rope_scaling", "an object or null", scaling->dump());
    FieldReader nested = in.Nested(*scaling, "rope_scaling");  // a rope_theta in here means nothing (model.md 5)
    rope.yarn = ReadYarn(nested, &rope.yarn_config);
    in.Take(nested);
  } else if (in.Int({"original_seq_len"}, 0, 0, kMaxPosition) > 0) {  // DeepSeek's private names
    rope.yarn = true;
    rope.yarn_config.original_max_position_embeddings = in.Real({"original_seq_len"}, 65536, 0);
    rope.yarn_config.factor = in.Real({"rope_factor"}, 16, 0);
    rope.yarn_config.beta_fast = in.Real({"beta_fast"}, 32, 0);
    rope.yarn_config.beta_slow = in.Real({"beta_slow"}, 1, 0);
  }
}

void ReadRopeDim(FieldReader& in, ModelConfig* c) {
  std::string key;
  if (in.FindNonNull({"qk_rope_head_dim", "rope_head_dim"}, &key)) {
    c->rope_dim = static_cast<int>(in.Int({"qk_rope_head_dim", "rope_head_dim"}, 64, 1));
  } else {
    key = "partial_rotary_factor";
    const double channels = c->head_dim * in.Real({"partial_rotary_factor"}, 0.125, 0);
    c->rope_dim = static_cast<int>(std::min(std::round(channels), 1e6));
    if (std::abs(channels - c->rope_dim) > 1e-6) {
      in.Refuse(key, "a whole number of channels of head_dim", std::to_string(channels));
    }
  }
  const int most = std::min(c->head_dim, kMaxRopeDim);
  if (c->rope_dim % 2 != 0 || c->rope_dim > most || c->rope_dim < 2) {
    in.Refuse(key, "an even number of RoPE channels in [2, " + std::to_string(most) + "]", std::to_string(c->rope_dim));
  }
}

void CheckRelations(FieldReader& in, const ModelConfig& c) {
  if (c.num_attention_heads % c.o_groups != 0) {
    in.Refuse("o_groups", "a divisor of num_attention_heads = " + std::to_string(c.num_attention_heads),
              std::to_string(c.o_groups));
  }
  if (c.num_experts_per_tok > c.n_routed_experts) {
    in.Refuse("num_experts_per_tok", "at most n_routed_experts = " + std::to_string(c.n_routed_experts),
              std::to_string(c.num_experts_per_tok));
  }
  const bool any_csa = std::count(c.layers.begin(), c.layers.end(), LayerKind::kCsa) > 0;
  if (any_csa && c.index_head_dim < c.rope_dim) {
    in.Refuse("index_head_dim", "at least the " + std::to_string(c.rope_dim) + " RoPE channels",
              std::to_string(c.index_head_dim));
  }
}

/// DeepSeek's private config has no model_type, every other form must name this architecture: deepseek_v41
/// and deepseek_v3 share most keys and would load into nonsense.
void CheckModelType(FieldReader& in) {
  const bool private_form = in.Find({"dim", "n_layers"}) != nullptr;
  if (!in.Find({"model_type"}) && !private_form) in.Refuse("model_type", "\"deepseek_v4\"", "nothing");
  in.Fixed({"model_type"}, "deepseek_v4");
}

/// model.md 6.5: V4-Flash-0731 carries a DSpark draft. Its main model is the ordinary one, the draft's tensors are
/// `mtp.*`.
void NoteDraft(FieldReader& in, const Json& json, const std::string& file, int layers) {
  const auto is_dspark = [](const auto& item) { return item.key().rfind("dspark_", 0) == 0; };
  const auto items = json.items();
  if (std::none_of(items.begin(), items.end(), is_dspark)) return;
  if (const Json* targets = in.FindNonNull({"dspark_target_layer_ids"}); targets && targets->is_array()) {
    for (size_t i = 0; i < targets->size(); ++i) {
      in.AsInt(Entry("dspark_target_layer_ids", i), (*targets)[i], 0, 0, layers - 1);
    }
  }
  if (in.ok()) LogInfo(file + ": the dspark_* keys describe a draft model, which is not used");
}

/// One "key=value;" per field. %.17g and %.9g give doubles and floats back exactly.
class CanonicalText {
 public:
  void Int(const char* key, int64_t value) { text_ += std::string(key) + "=" + std::to_string(value) + ";"; }
  void Real(const char* key, double value) {
    char number[40];
    std::snprintf(number, sizeof(number), "%.17g", value);
    text_ += std::string(key) + "=" + number + ";";
  }
  void Real(const char* key, float value) {
    char number[40];
    std::snprintf(number, sizeof(number), "%.9g", static_cast<double>(value));
    text_ += std::string(key) + "=" + number + ";";
  }
  template <typename List>
  void Ints(const char* key, const List& list) {
    text_ += std::string(key) + "=";
    for (auto&& value : list) text_ += std::to_string(static_cast<int>(value)) + ",";
    text_ += ";";
  }
  std::string Text() && { return std::move(text_); }

 private:
  std::string text_ = "deepseek_v4;";
};

}  // namespace

StatusOr<ModelConfig> ModelConfig::Parse(const std::string& text, const std::string& file) {
  if (JsonIsDeeperThan(text, kMaxJsonDepth))
    return InvalidArgument(file + ": wanted at most " + std::to_string(kMaxJsonDepth) + " levels of nesting");
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return InvalidArgument(file + ": wanted a JSON object, got " +
                           (json.is_discarded() ? "text that is not JSON" : json.type_name()));
  }
  ModelConfig config;
  FieldReader in(json, file);
  CheckModelType(in);
  CheckFixed(in);
  ReadSizes(in, &config);
  if (!in.ok()) return in.status();  // the rest depends on the sizes
  ReadTokens(in, &config);
  ReadLayerKinds(in, &config);
  ReadHashLayers(in, &config);
  ReadRope(in, &config);
  ReadRopeDim(in, &config);
  CheckRelations(in, config);
  NoteDraft(in, json, file, config.num_hidden_layers);
  if (!in.ok()) return in.status();
  return config;
}

StatusOr<ModelConfig> ModelConfig::Load(const std::string& directory) {
  const std::string path = directory + "/config.json";
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return NotFound(path + ": no such file");
  std::stringstream text;
  text << stream.rdbuf();
  return Parse(text.str(), path);
}

std::string ModelConfig::Canonical() const {
  CanonicalText out;
  out.Int("vocab_size", vocab_size);
  out.Int("hidden_size", hidden_size);
  out.Int("num_hidden_layers", num_hidden_layers);
  out.Int("num_attention_heads", num_attention_heads);
  out.Int("head_dim", head_dim);
  out.Int("rope_dim", rope_dim);
  out.Int("q_lora_rank", q_lora_rank);
  out.Int("o_lora_rank", o_lora_rank);
  out.Int("o_groups", o_groups);
  out.Int("sliding_window", sliding_window);
  out.Int("index_n_heads", index_n_heads);
  out.Int("index_head_dim", index_head_dim);
  out.Int("index_topk", index_topk);
  out.Int("n_routed_experts", n_routed_experts);
  out.Int("num_experts_per_tok", num_experts_per_tok);
  out.Int("moe_intermediate_size", moe_intermediate_size);
  out.Real("routed_scaling_factor", routed_scaling_factor);
  out.Real("swiglu_limit", swiglu_limit);
  out.Int("hc_mult", hc_mult);
  out.Int("hc_sinkhorn_iters", hc_sinkhorn_iters);
  out.Real("hc_eps", hc_eps);
  out.Real("rms_norm_eps", rms_norm_eps);
  out.Int("max_position_embeddings", max_position_embeddings);
  out.Int("bos_token_id", bos_token_id);
  out.Ints("eos_token_ids", eos_token_ids);
  out.Real("rope_theta", rope.theta);
  out.Real("compress_rope_theta", rope.compress_theta);
  if (rope.yarn) {
    out.Real("yarn_factor", rope.yarn_config.factor);
    out.Real("yarn_original_max_position_embeddings", rope.yarn_config.original_max_position_embeddings);
    out.Real("yarn_beta_fast", rope.yarn_config.beta_fast);
    out.Real("yarn_beta_slow", rope.yarn_config.beta_slow);
  }
  out.Ints("ratios", layers);
  out.Ints("hash_layer", hash_layer);
  return std::move(out).Text();
}

std::vector<float> InverseFrequencies(const ModelConfig& config, bool compress) {
  const int dim = config.rope_dim;
  const double theta = compress ? config.rope.compress_theta : config.rope.theta;
  const YarnConfig& yarn = config.rope.yarn_config;
  const auto corrected_dim = [&](double rotations) {
    const double span = yarn.original_max_position_embeddings / (rotations * 2 * M_PI);
    return dim * std::log(span) / (2 * std::log(theta));
  };
  std::vector<float> frequencies(dim / 2);
  for (int i = 0; i < dim / 2; ++i) {
    double inverse = std::pow(theta, -2.0 * i / dim);
    if (compress && config.rope.yarn) {
      const double low = std::max(std::floor(corrected_dim(yarn.beta_fast)), 0.0);
      const double high = std::min(std::ceil(corrected_dim(yarn.beta_slow)), dim - 1.0);
      const double width = high == low ? 0.001 : high - low;
      const double ramp = std::clamp((i - low) / width, 0.0, 1.0);
      inverse = inverse * (1 - ramp) + inverse / yarn.factor * ramp;
    }
    frequencies[i] = static_cast<float>(inverse);
  }
  return frequencies;
}

}  // namespace cachalot

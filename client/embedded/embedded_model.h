#pragma once
// All roles' model parts in one process: one weights object, KV by reference. The yardstick for what disaggregation
// costs, and what the command line runs without a cluster.

#include <memory>
#include <string>

#include "common/model/forward.h"
#include "common/tokenizer/tokenizer.h"
#include "prefill_worker/prefix_cache.h"

namespace cachalot {

struct EmbeddedOptions {
  std::string model;             // checkpoint directory
  std::string kernels = "auto";  // back end
  std::string mode = "exact";    // numeric mode, exact or bf16
  int threads = 1;
  int max_sequences = 64;
  int64_t kv_tokens = 65536;
  PrefixCacheOptions prefix_cache = {};  // off
};

class EmbeddedModel {
 public:
  static StatusOr<std::unique_ptr<EmbeddedModel>> Load(const EmbeddedOptions& options);

  Model& model() { return *model_; }
  ExpertBackend& experts() { return *experts_; }
  BlockPools& pools() { return *pools_; }
  /// Of whichever thread runs prefills; null when it is off.
  PrefixStore* prefixes() { return prefixes_.get(); }
  const ModelConfig& config() const { return model_->config(); }
  /// Null when the checkpoint has no tokenizer.json.
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }

 private:
  EmbeddedModel() = default;
  std::unique_ptr<ThreadPool> threads_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<BlockPools> pools_;
  std::unique_ptr<PrefixStore> prefixes_;
  std::unique_ptr<ExpertBackend> experts_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

/// The checkpoint's tokenizer; null where there is no tokenizer.json, an error where there is a broken one.
StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerIfPresent(const std::string& model_directory);

}  // namespace cachalot

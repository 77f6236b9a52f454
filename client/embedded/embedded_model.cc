#include "client/embedded/embedded_model.h"

namespace cachalot {

StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerIfPresent(const std::string& model_directory) {
  StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(model_directory + "/tokenizer.json");
  if (tokenizer.status().code() == StatusCode::kNotFound) return std::unique_ptr<Tokenizer>();
  return tokenizer;
}

StatusOr<std::unique_ptr<EmbeddedModel>> EmbeddedModel::Load(const EmbeddedOptions& options) {
  ASSIGN_OR_RETURN(const kernels::KernelTable* kernels, kernels::SelectKernels(options.kernels, options.mode));
  ASSIGN_OR_RETURN(auto weights, ModelWeights::Load(options.model, WeightSelection::All()));
  std::unique_ptr<EmbeddedModel> embedded(new EmbeddedModel);
  ASSIGN_OR_RETURN(embedded->tokenizer_, LoadTokenizerIfPresent(options.model));
  embedded->threads_ = std::make_unique<ThreadPool>(options.threads);
  embedded->model_ = std::make_unique<Model>(weights, *kernels, *embedded->threads_);
  const KvLayout layout(KvShapeOf(weights->config, kernels->mode));
  RETURN_IF_ERROR(CheckKvMemory(layout, options.max_sequences, options.kv_tokens));
  embedded->pools_ = std::make_unique<BlockPools>(layout, options.max_sequences, options.kv_tokens);
  embedded->prefixes_ = MakePrefixStore(*embedded->model_, embedded->pools_->layout(), options.prefix_cache);
  embedded->experts_ = std::make_unique<LocalExperts>(ExpertTable(*weights), *kernels, *embedded->threads_,
                                                      weights->config.swiglu_limit);
  return embedded;
}

}  // namespace cachalot

#include "prefill_worker/prefix_cache.h"

#include <utility>

namespace cachalot {

std::string PrefixSalt(const Model& model) {
  const kernels::KernelTable& kernels = model.kernels();
  return model.weights().fingerprint + "\n" + std::string(kernels::ModeName(kernels.mode)) + "\n" +
         kernels.numerics_id;
}

std::unique_ptr<PrefixStore> MakePrefixStore(const Model& model, const KvLayout& layout,
                                             PrefixCacheOptions options) {
  if (options.bytes == 0) return nullptr;
  PrefixStoreOptions store;
  store.salt = PrefixSalt(model);
  store.max_bytes = options.bytes;
  store.max_snapshot_bytes = options.bytes / 100 * options.snapshot_percent;
  return std::make_unique<PrefixStore>(layout, std::move(store));
}

}  // namespace cachalot

#pragma once
// The settings of cachalot-prefill.

#include "common/config/schema.h"
#include "common/worker/worker_config.h"
#include "prefill_worker/prefill_server.h"

namespace cachalot {

struct PrefillConfig {
  PrefillConfig() { server.prefix_cache.bytes = kDefaultPrefixCacheBytes; }

  WorkerConfig worker;
  PrefillServerOptions server;  // what `worker` has too is there

  PrefillServerOptions ServerOptions() const;
};

void AddFlags(ConfigSchema& schema, PrefillConfig* config);

}  // namespace cachalot

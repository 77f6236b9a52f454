#pragma once
// The settings of cachalot-decode.

#include "common/config/schema.h"
#include "common/worker/worker_config.h"
#include "decode_worker/decode_server.h"

namespace cachalot {

struct DecodeConfig {
  WorkerConfig worker{.max_sequences = 256};
  DecodeServerOptions server;  // what `worker` has too is there

  DecodeServerOptions ServerOptions() const;
};

void AddFlags(ConfigSchema& schema, DecodeConfig* config);

}  // namespace cachalot

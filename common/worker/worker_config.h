#pragma once
// The settings that prefill and decode workers share.

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/time.h"
#include "common/config/schema.h"
#include "common/process/run_role.h"

namespace cachalot {

struct WorkerConfig {
  std::string listen = "127.0.0.1:0", metrics_listen, model, kernels = "auto", mode = "exact";
  std::vector<std::string> experts;
  std::string dns_server;
  int threads = 1, max_sequences = 64;
  int64_t kv_tokens = 262144;
  bool debug_logits = false;
  Duration drain_limit = std::chrono::seconds(10);
  RoleFlags role;

  bool local_experts() const { return experts == std::vector<std::string>{"local"}; }
};

void AddFlags(ConfigSchema& schema, WorkerConfig* config);

}  // namespace cachalot

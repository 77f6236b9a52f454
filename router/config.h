#pragma once
// The settings of cachalot-router.

#include <string>
#include <vector>

#include "common/config/schema.h"
#include "common/discovery/name_watch.h"
#include "common/process/run_role.h"
#include "router/request_flow.h"

namespace cachalot {

struct RouterConfig {
  std::string listen = "127.0.0.1:8000", metrics_listen, model;
  std::vector<std::string> prefill, decode;
  std::string dns_server;
  Duration dns_interval = NameWatchOptions().interval;
  bool debug_logits = false;
  Duration drain = std::chrono::seconds(10);
  FlowOptions flow;
  RoleFlags role;
};

void AddFlags(ConfigSchema& schema, RouterConfig* config);

/// What a router takes on, wherever it runs.
void AddFlags(ConfigSchema& schema, FlowOptions* flow);

}  // namespace cachalot

#pragma once
// The settings of cachalot-expert.

#include "common/config/schema.h"
#include "common/process/run_role.h"
#include "expert_service/service.h"

namespace cachalot {

struct ExpertConfig {
  ExpertServiceConfig service;
  std::string metrics_listen;
  RoleFlags role;
};

void AddFlags(ConfigSchema& schema, ExpertConfig* config);

}  // namespace cachalot

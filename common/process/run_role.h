#pragma once
// What every server binary does around its serving: flags, --help, --check-config, log and signals, exit code.
//
//   int main(int argc, char** argv) {
//     RoleProcess process({.role = "decode", .poll_strategy = PollStrategy::kPoll});
//     DecodeConfig config;
//     ConfigSchema schema("cachalot-decode", "Holds the KV of ...");
//     AddFlags(schema, &config);
//     return RunRole(process, schema, config.role, WordsOf(argc, argv), [&] { return Serve(process, config); });
//   }

#include <functional>
#include <string>
#include <vector>

#include "common/config/schema.h"
#include "common/process/role_main.h"

namespace cachalot {

/// Flags that every server has.
struct RoleFlags {
  std::string log_level = "info";
  bool die_with_parent = false;
  bool check_config = false;
};

void AddFlags(ConfigSchema& schema, RoleFlags* flags);

std::vector<std::string> WordsOf(int argc, const char* const* argv);

/// Fills what `schema` points at, `flags` among it, from `words`. Then `serve` runs, with signals taken, unless only
/// help or a look at the configuration is wanted. The process's exit code.
int RunRole(RoleProcess& process, ConfigSchema& schema, const RoleFlags& flags, const std::vector<std::string>& words,
            const std::function<Status()>& serve);

}  // namespace cachalot

#include "common/process/run_role.h"

#include <cstdio>

namespace cachalot {
namespace {

Status Run(RoleProcess& process, ConfigSchema& schema, const RoleFlags& flags, const std::vector<std::string>& words,
           const std::function<Status()>& serve) {
  ASSIGN_OR_RETURN(const ParsedArgs parsed, schema.Parse(words));
  if (parsed.help) {
    std::fputs(schema.Help().c_str(), stdout);
    return OkStatus();
  }
  if (flags.check_config) {
    std::puts("configuration is valid");
    return OkStatus();
  }
  RETURN_IF_ERROR(process.Init(flags.log_level));
  if (flags.die_with_parent) RETURN_IF_ERROR(process.DieWithParent());
  return serve();
}

}  // namespace

void AddFlags(ConfigSchema& schema, RoleFlags* flags) {
  schema.Add("log-level", &flags->log_level, "debug, info, warning or error",
             OneOf({"debug", "info", "warning", "error"}));
  schema.Add("die-with-parent", &flags->die_with_parent, "end when the process that started this one ends");
  schema.Add("check-config", &flags->check_config, "look at flags and file, say whether they are valid, and end");
}

std::vector<std::string> WordsOf(int argc, const char* const* argv) {
  return std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc);
}

int RunRole(RoleProcess& process, ConfigSchema& schema, const RoleFlags& flags, const std::vector<std::string>& words,
            const std::function<Status()>& serve) {
  return process.Exit(Run(process, schema, flags, words, serve));
}

}  // namespace cachalot

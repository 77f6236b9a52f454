#pragma once
// The commands of `cachalot`. Each takes the words behind its name and returns the exit code: 0, 1 (it failed), or 2
// (wrong usage).

#include <string>
#include <vector>

#include "common/base/status.h"

namespace cachalot::cli {

int LogitsCommand(const std::vector<std::string>& words);
int GenerateCommand(const std::vector<std::string>& words);
int ChatCommand(const std::vector<std::string>& words);
int UpCommand(const std::vector<std::string>& words);
int DemoCommand(const std::vector<std::string>& words);
int ServeCommand(const std::vector<std::string>& words);
int InspectCommand(const std::vector<std::string>& words);

/// Prints a failed status to stderr and gives the exit code.
int Report(const std::string& command, const Status& status);

}  // namespace cachalot::cli

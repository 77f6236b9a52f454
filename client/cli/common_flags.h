#pragma once
// Flags that several commands share, and what they mean.

#include <string>
#include <utility>
#include <vector>

#include "common/base/status.h"
#include "common/config/schema.h"

namespace cachalot::cli {

/// Where a command runs: embedded in this process, or at a router. Exactly one is given.
struct Target {
  std::string model, router;
  std::string mode = "exact", kernels = "auto";
  int threads = 1;
  int64_t prefix_cache_bytes = 0;  // no flag: of commands that ask more than once

  void AddTo(ConfigSchema& schema);
  bool embedded() const { return !model.empty(); }
};

/// Token ids from --ids 1,2,3 or --ids-file F (separated by commas or white space).
struct IdsInput {
  std::string ids, file;

  void AddTo(ConfigSchema& schema);
  bool given() const { return !ids.empty() || !file.empty(); }
  StatusOr<std::vector<int32_t>> Read() const;
};

/// "id:bias,id:bias".
StatusOr<std::vector<std::pair<int32_t, float>>> ParseLogitBias(const std::string& text,
                                                                const std::string& where);

/// A JSON array of strings when it begins with '[', else strings separated by commas, in which a backslash
/// before a comma, a '[' or a backslash takes it as it is, and \n and \t are a line feed and a tab.
StatusOr<std::vector<std::string>> ParseStrings(const std::string& text, const std::string& where);

/// INVALID_ARGUMENT names the entry that is no number.
StatusOr<std::vector<int32_t>> ParseIds(const std::string& text, const std::string& where);

}  // namespace cachalot::cli

#pragma once
// Flags that several commands share, and what they mean.

#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/config/schema.h"

namespace cachalot::cli {

/// Where a command runs: embedded in this process, or at a router. Exactly one is given.
struct Target {
  std::string model, router;
  std::string mode = "exact", kernels = "auto";
  int threads = 1;

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

/// INVALID_ARGUMENT names the entry that is no number.
StatusOr<std::vector<int32_t>> ParseIds(const std::string& text, const std::string& where);

}  // namespace cachalot::cli

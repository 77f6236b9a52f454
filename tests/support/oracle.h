#pragma once
// Oracle cases: small random models with the logits and greedy tokens of an independent implementation. Two are in the
// repository; a folder beside it may hold more.

#include <string>
#include <vector>

#include "common/base/status.h"

namespace cachalot::testing {

struct OracleCase {
  std::string directory;
  std::vector<int32_t> input_ids, greedy_tokens;
  std::vector<float> prompt_logits;  // [input_ids, vocab]
  std::vector<float> greedy_logits;  // [greedy_tokens, vocab]

  static StatusOr<OracleCase> Load(const std::string& directory);
};

/// Directories of all cases present.
std::vector<std::string> OracleDirectories();

/// The demo checkpoint.
std::string DemoDirectory();

/// A directory with the same files but config.official.json in config.json's place; "" where the case has none.
std::string WithOfficialConfig(const std::string& directory);

}  // namespace cachalot::testing

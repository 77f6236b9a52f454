#pragma once
// Text to value, strictly: the whole text must be the value. For schema.cc and flags of tools.

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/base/time.h"

namespace cachalot {

/// Each gives INVALID_ARGUMENT with "expected ..., got '...'".
StatusOr<int64_t> ParseInteger(const std::string& text, int64_t least, int64_t most);
StatusOr<double> ParseNumber(const std::string& text);
StatusOr<bool> ParseBool(const std::string& text);
StatusOr<Duration> ParseMilliseconds(const std::string& text);
/// Comma-separated; "" is the empty list; an empty item is an error.
StatusOr<std::vector<std::string>> ParseList(const std::string& text);

std::string NumberText(double value);
std::string ListText(const std::vector<std::string>& items);

}  // namespace cachalot

#pragma once
// CHECK aborts on a bug of ours, in every build. What the world can break returns a Status instead.

#include <string>

namespace cachalot {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, const std::string& detail = "");
}  // namespace cachalot

#define CHECK(condition) \
  ((condition) ? (void)0 : ::cachalot::CheckFailed(__FILE__, __LINE__, #condition))
#define CHECK_MSG(condition, detail) \
  ((condition) ? (void)0 : ::cachalot::CheckFailed(__FILE__, __LINE__, #condition, (detail)))

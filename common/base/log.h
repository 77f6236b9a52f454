#pragma once
// One line per event on stderr: time, level, role, message. A message about a request starts with "[request-id]".

#include <string>
#include <string_view>

namespace cachalot {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

/// Call once at start. `role` is printed in every line; `level` is one of debug, info, warning, error.
/// False for an unknown level.
bool InitLog(std::string_view role, std::string_view level);
void Log(LogLevel level, const std::string& message);

inline void LogDebug(const std::string& message) { Log(LogLevel::kDebug, message); }
inline void LogInfo(const std::string& message) { Log(LogLevel::kInfo, message); }
inline void LogWarning(const std::string& message) { Log(LogLevel::kWarning, message); }
inline void LogError(const std::string& message) { Log(LogLevel::kError, message); }

}  // namespace cachalot

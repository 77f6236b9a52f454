#pragma once
// For targets whose inputs are messages: what is wrong with them is said over and over.

#include <google/protobuf/stubs/logging.h>

#include "common/base/log.h"

namespace cachalot::fuzz {

/// Once a process.
inline void QuietLogs() {
  [[maybe_unused]] static const auto protobuf = google::protobuf::SetLogHandler(nullptr);
  [[maybe_unused]] static const bool ours = InitLog("fuzz", "error");
}

}  // namespace cachalot::fuzz

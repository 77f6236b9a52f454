#pragma once
// Results on stdout. A stream to a full disk fails silently unless somebody asks it; these do.

#include <string_view>

#include "common/base/status.h"

namespace cachalot {

/// Writes `text` and flushes it. UNAVAILABLE with the system's reason: `stdout: write: No space left on device`.
/// When the reader of a pipe has gone the process ends by SIGPIPE, as tools do, unless that signal is ignored.
Status WriteStdout(std::string_view text);

/// Flushes what stdio holds, and says whether all that was ever written to stdout has arrived.
Status FlushStdout();

}  // namespace cachalot

#pragma once
// Files of a checkpoint as text.

#include <string>

#include "common/base/status.h"

namespace cachalot {

/// NOT_FOUND: there is none of that name. INVALID_ARGUMENT: there is one that is empty, a directory or cannot be read,
/// a dangling link too. Who can do without the file goes on after NOT_FOUND only: a broken one is no missing one.
StatusOr<std::string> ReadNonEmptyFile(const std::string& path);

}  // namespace cachalot

#pragma once
// JSON from outside must not nest too deeply: nlohmann parses without recursion, but prints, copies and compares values
// by recursion, and 100,000 brackets would exhaust the stack of whoever names the wrong value.

#include <string_view>

namespace cachalot {

/// No file of a checkpoint needs more than ten; far below what a stack holds.
inline constexpr int kMaxJsonDepth = 64;

/// Whether more than `levels` objects and arrays are open at once. Asked before the text is parsed; of text that is no
/// JSON the answer means something up to its first error only.
bool JsonIsDeeperThan(std::string_view text, int levels);

}  // namespace cachalot

#pragma once
// String constants of a Python module, read without running it: module-level assignments of string literals,
// their concatenations, and dicts of them. Everything else in the source is skipped.

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cachalot {

class PythonConstants {
 public:
  using Dict = std::vector<std::pair<std::string, std::string>>;

  /// Understands NAME = value and NAME: annotation = value, where value is made of literals of all quotings
  /// (also raw, with escapes, adjacent, over several lines in parentheses), `+`, names of earlier constants,
  /// and {key: value}. An assignment of anything else (f-strings, calls) defines nothing.
  static PythonConstants Parse(std::string_view source);

  /// Null if the module has no such constant. The last assignment counts.
  const std::string* FindString(const std::string& name) const;
  const Dict* FindDict(const std::string& name) const;

 private:
  friend class PythonScanner;
  std::map<std::string, std::string> strings_;
  std::map<std::string, Dict> dicts_;
};

}  // namespace cachalot

#pragma once
// JSON as Python's json module reads and writes it, since the model was trained on prompts made with
// json.loads and json.dumps(ensure_ascii=False): order of keys kept, separators ", " and ": ", integers of
// any size, floats by repr(). nlohmann::json reads large integers as doubles and has no NaN, hence this.

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/status.h"

namespace cachalot {

struct PythonJson {
  enum class Kind { kNull, kFalse, kTrue, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  std::string text;  // of a number: as Python prints it; of a string: its characters
  std::vector<PythonJson> items;
  std::vector<std::pair<std::string, PythonJson>> members;  // a repeated key has its first place, last value

  // Defined in the .cc: inside the class clang would need the pair of `members` complete for them.
  PythonJson();
  PythonJson(const PythonJson&);
  PythonJson(PythonJson&&) noexcept;
  PythonJson& operator=(const PythonJson&);
  PythonJson& operator=(PythonJson&&) noexcept;
  ~PythonJson();

  /// json.loads, which also takes NaN and Infinity. InvalidArgument with the byte offset; also for half a
  /// surrogate pair (no UTF-8 can hold it), for invalid UTF-8 and for more than 500 levels.
  static StatusOr<PythonJson> Parse(std::string_view text);

  /// json.dumps(ensure_ascii=False).
  std::string Dump() const;

  /// The member of an object, or null.
  const PythonJson* Find(std::string_view key) const;

  bool is_null() const { return kind == Kind::kNull; }
  bool is_string() const { return kind == Kind::kString; }
  bool is_array() const { return kind == Kind::kArray; }
  bool is_object() const { return kind == Kind::kObject; }

  /// Python's bool(value).
  bool truthy() const;
};

/// A string as json.dumps(ensure_ascii=False) writes it, with its quotes.
std::string PythonJsonString(std::string_view text);

/// repr() of a float; NaN and infinities as json.dumps writes them.
std::string PythonFloat(double value);

}  // namespace cachalot

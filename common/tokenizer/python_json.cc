#include "common/tokenizer/python_json.h"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <unordered_map>

#include "common/tokenizer/utf8.h"

namespace cachalot {
namespace {

using Kind = PythonJson::Kind;

constexpr int kMaxDepth = 500;          // Python's own recursion limit is of this size
constexpr size_t kMaxIntDigits = 4300;  // sys.get_int_max_str_digits()

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

class Parser {
 public:
  explicit Parser(std::string_view text) : in_(text) {}

  StatusOr<PythonJson> Run() {
    ASSIGN_OR_RETURN(PythonJson value, Value(0));
    SkipSpace();
    if (at_ != in_.size()) return Error("something after the value");
    return value;
  }

 private:
  Status Error(std::string_view what) const {
    return InvalidArgument("not JSON: " + std::string(what) + " at byte " + std::to_string(at_));
  }

  void SkipSpace() {
    while (at_ < in_.size() && std::string_view(" \t\n\r").find(in_[at_]) != std::string_view::npos) ++at_;
  }

  bool Take(std::string_view token) {
    if (in_.substr(at_, token.size()) != token) return false;
    at_ += token.size();
    return true;
  }

  StatusOr<PythonJson> Value(int depth) {
    if (depth > kMaxDepth) return Error("too many levels");
    SkipSpace();
    if (at_ == in_.size()) return Error("a missing value");
    PythonJson value;
    switch (in_[at_]) {
      case '{':
        return Object(depth);
      case '[':
        return Array(depth);
      case '"': {
        value.kind = Kind::kString;
        ASSIGN_OR_RETURN(value.text, String());
        return value;
      }
      default:
        break;
    }
    if (Take("null")) return value;
    if (Take("true")) {
      value.kind = Kind::kTrue;
    } else if (Take("false")) {
      value.kind = Kind::kFalse;
    } else {
      value.kind = Kind::kNumber;
      ASSIGN_OR_RETURN(value.text, Number());
    }
    return value;
  }

  StatusOr<PythonJson> Array(int depth) {
    PythonJson array;
    array.kind = Kind::kArray;
    ++at_;
    SkipSpace();
    if (Take("]")) return array;
    while (true) {
      ASSIGN_OR_RETURN(PythonJson item, Value(depth + 1));
      array.items.push_back(std::move(item));
      SkipSpace();
      if (Take("]")) return array;
      if (!Take(",")) return Error("no ',' or ']'");
    }
  }

  StatusOr<PythonJson> Object(int depth) {
    PythonJson object;
    object.kind = Kind::kObject;
    std::unordered_map<std::string, size_t> index;
    ++at_;
    SkipSpace();
    if (Take("}")) return object;
    while (true) {
      SkipSpace();
      if (at_ == in_.size() || in_[at_] != '"') return Error("no key in quotes");
      ASSIGN_OR_RETURN(std::string key, String());
      SkipSpace();
      if (!Take(":")) return Error("no ':'");
      ASSIGN_OR_RETURN(PythonJson value, Value(depth + 1));
      if (const auto [known, is_new] = index.emplace(key, object.members.size()); is_new) {
        object.members.emplace_back(std::move(key), std::move(value));
      } else {
        object.members[known->second].second = std::move(value);
      }
      SkipSpace();
      if (Take("}")) return object;
      if (!Take(",")) return Error("no ',' or '}'");
    }
  }

  StatusOr<std::string> String() {
    std::string out;
    for (++at_; at_ < in_.size();) {
      const char c = in_[at_];
      if (static_cast<unsigned char>(c) < 0x20) return Error("a control character in a string");
      if (c == '"') {
        ++at_;
        return out;
      }
      if (c == '\\') {
        RETURN_IF_ERROR(Escape(&out));
      } else {
        out.push_back(c);
        ++at_;
      }
    }
    return Error("an unfinished string");
  }

  Status Escape(std::string* out) {
    if (at_ + 1 == in_.size()) return Error("an unfinished string");
    static constexpr std::string_view kNames = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    const char name = in_[at_ + 1];
    if (const size_t known = kNames.find(name); known != std::string_view::npos) {
      out->push_back(kMeanings[known]);
      at_ += 2;
      return OkStatus();
    }
    if (name != 'u') return Error("an unknown escape");
    char32_t c = 0;
    if (!CodeUnit(&c)) return Error("a bad \\u");
    if (c >= 0xD800 && c < 0xDC00 && in_.substr(at_, 2) == "\\u") {
      const size_t low_at = at_;
      char32_t low = 0;
      if (!CodeUnit(&low)) return Error("a bad \\u");
      if (low >= 0xDC00 && low < 0xE000) {
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
      } else {
        at_ = low_at;
      }
    }
    if (!AppendUtf8(c, out)) return Error("half a surrogate pair");
    return OkStatus();
  }

  /// Reads \uXXXX.
  bool CodeUnit(char32_t* c) {
    const std::string_view hex = in_.substr(at_ + 2, 4);
    uint32_t value = 0;
    const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), value, 16);
    if (hex.size() != 4 || error != std::errc() || end != hex.data() + 4) return false;
    at_ += 6;
    *c = value;
    return true;
  }

  size_t Digits(size_t from) const {
    while (from < in_.size() && IsDigit(in_[from])) ++from;
    return from;
  }

  StatusOr<std::string> Number() {
    for (const std::string_view word : {"NaN", "Infinity", "-Infinity"}) {
      if (Take(word)) return std::string(word);
    }
    const size_t first = at_ + (in_[at_] == '-' ? 1 : 0);
    size_t end = Digits(first);
    if (end == first) return Error("no value");
    if (in_[first] == '0') end = first + 1;  // what follows a leading zero is then refused as a rest
    bool is_float = false;
    if (end + 1 < in_.size() && in_[end] == '.' && IsDigit(in_[end + 1])) {
      end = Digits(end + 1);
      is_float = true;
    }
    if (end < in_.size() && (in_[end] == 'e' || in_[end] == 'E')) {
      const bool sign = end + 1 < in_.size() && (in_[end + 1] == '+' || in_[end + 1] == '-');
      const size_t exponent = end + 1 + (sign ? 1 : 0);
      if (Digits(exponent) > exponent) {
        end = Digits(exponent);
        is_float = true;
      }
    }
    const std::string text(in_.substr(at_, end - at_));
    if (!is_float && end - first > kMaxIntDigits) return Error("an integer of too many digits");
    at_ = end;
    if (!is_float) return text == "-0" ? "0" : text;
    return PythonFloat(ToDouble(text));
  }

  static double ToDouble(const std::string& text) {
    double value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    // from_chars does not say on which side a number is out of range; strtod gives infinity or zero.
    return result.ec == std::errc::result_out_of_range ? std::strtod(text.c_str(), nullptr) : value;
  }

  std::string_view in_;
  size_t at_ = 0;
};

void DumpTo(const PythonJson& value, std::string* out) {
  const char* separator = "";
  switch (value.kind) {
    case Kind::kNull:
      *out += "null";
      break;
    case Kind::kFalse:
      *out += "false";
      break;
    case Kind::kTrue:
      *out += "true";
      break;
    case Kind::kNumber:
      *out += value.text;
      break;
    case Kind::kString:
      *out += PythonJsonString(value.text);
      break;
    case Kind::kArray:
      *out += '[';
      for (const PythonJson& item : value.items) {
        *out += std::exchange(separator, ", ");
        DumpTo(item, out);
      }
      *out += ']';
      break;
    case Kind::kObject:
      *out += '{';
      for (const auto& [key, member] : value.members) {
        *out += std::exchange(separator, ", ");
        *out += PythonJsonString(key) + ": ";
        DumpTo(member, out);
      }
      *out += '}';
      break;
  }
}

}  // namespace

PythonJson::PythonJson() = default;
PythonJson::PythonJson(const PythonJson&) = default;
PythonJson::PythonJson(PythonJson&&) noexcept = default;
PythonJson& PythonJson::operator=(const PythonJson&) = default;
PythonJson& PythonJson::operator=(PythonJson&&) noexcept = default;
PythonJson::~PythonJson() = default;

StatusOr<PythonJson> PythonJson::Parse(std::string_view text) {
  if (const size_t at = FindInvalidUtf8(text); at != std::string_view::npos) {
    return InvalidArgument("not valid UTF-8 at byte " + std::to_string(at) + "; send UTF-8");
  }
  return Parser(text).Run();
}

std::string PythonJson::Dump() const {
  std::string out;
  DumpTo(*this, &out);
  return out;
}

const PythonJson* PythonJson::Find(std::string_view key) const {
  for (const auto& [name, value] : members) {
    if (name == key) return &value;
  }
  return nullptr;
}

bool PythonJson::truthy() const {
  switch (kind) {
    case Kind::kNull:
    case Kind::kFalse:
      return false;
    case Kind::kTrue:
      return true;
    case Kind::kNumber:
      return text != "0" && text != "0.0" && text != "-0.0";
    case Kind::kString:
      return !text.empty();
    case Kind::kArray:
      return !items.empty();
    case Kind::kObject:
      return !members.empty();
  }
  return false;
}

std::string PythonJsonString(std::string_view text) {
  static constexpr std::string_view kSpecial = "\"\\\n\r\t\f\b", kNames = "\"\\nrtfb";
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    if (const size_t special = kSpecial.find(c); special != std::string_view::npos) {
      out += {'\\', kNames[special]};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += {'\\', 'u', '0', '0', kHex[c >> 4], kHex[c & 15]};
    } else {
      out.push_back(c);
    }
  }
  return out + '"';
}

std::string PythonFloat(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  const std::string scientific(buffer, end);  // the shortest d.dde-XX that reads back, as Python's
  const size_t e = scientific.find('e');
  const int exponent = std::atoi(scientific.c_str() + e + 1);
  if (exponent < -4 || exponent >= 16) return scientific;
  std::string digits, sign = value < 0 || std::signbit(value) ? "-" : "";
  for (const char c : scientific.substr(0, e)) {
    if (IsDigit(c)) digits.push_back(c);
  }
  if (exponent < 0) return sign + "0." + std::string(-exponent - 1, '0') + digits;
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace cachalot

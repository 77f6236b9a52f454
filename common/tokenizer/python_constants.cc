#include "common/tokenizer/python_constants.h"

#include <cctype>
#include <cstdint>
#include <optional>

#include "common/tokenizer/utf8.h"

namespace cachalot {
namespace {

constexpr int kMaxDepth = 100;  // each open parenthesis is a call on our stack

bool IsNameStart(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool IsNamePart(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

std::string WithUnixLineEnds(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
    } else if (i + 1 == source.size() || source[i + 1] != '\n') {
      out.push_back('\n');
    }
  }
  return out;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

}  // namespace

/// Every function that returns an optional has none for "not something we read"; the caller then skips the
/// whole logical line.
class PythonScanner {
 public:
  PythonScanner(std::string_view source, PythonConstants* out) : in_(WithUnixLineEnds(source)), out_(out) {}

  void Run() {
    while (at_ < in_.size()) {
      const size_t line = at_;
      if (IsNameStart(in_[at_])) Assignment();
      at_ = line;
      SkipLogicalLine();
    }
  }

 private:
  char Peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }

  /// White space and, inside brackets, comments and line ends too.
  void SkipSpace() {
    while (at_ < in_.size()) {
      if (in_[at_] == '\\' && Peek(1) == '\n') {
        at_ += 2;
      } else if (in_[at_] == ' ' || in_[at_] == '\t' || in_[at_] == '\f' ||
                 (depth_ > 0 && in_[at_] == '\n')) {
        ++at_;
      } else if (in_[at_] == '#' && depth_ > 0) {
        SkipComment();
      } else {
        return;
      }
    }
  }

  void SkipComment() {
    while (at_ < in_.size() && in_[at_] != '\n') ++at_;
  }

  /// Past a literal without a look at its content; `at_` is at its quote.
  void SkipString() {
    const std::string quote = Quote();
    at_ += quote.size();
    while (at_ < in_.size() && in_.compare(at_, quote.size(), quote) != 0) {
      if (in_[at_] == '\n' && quote.size() == 1) return;  // unfinished: no Python, go on anyhow
      at_ += in_[at_] == '\\' ? 2 : 1;
    }
    at_ += quote.size();
  }

  std::string Quote() const { return std::string(Peek() == Peek(1) && Peek() == Peek(2) ? 3 : 1, Peek()); }

  void SkipLogicalLine() {
    int depth = 0;
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '"' || c == '\'') {
        SkipString();
        continue;
      }
      if (c == '#') {
        SkipComment();
        continue;
      }
      if (c == '(' || c == '[' || c == '{') ++depth;
      if (c == ')' || c == ']' || c == '}') --depth;
      at_ += c == '\\' ? 2 : 1;
      if (c == '\n' && depth <= 0) return;
    }
  }

  std::string Name() {
    const size_t begin = at_;
    while (IsNamePart(Peek())) ++at_;
    return in_.substr(begin, at_ - begin);
  }

  void Assignment() {
    const std::string name = Name();
    SkipSpace();
    if (Peek() == ':') {  // an annotation
      while (at_ < in_.size() && in_[at_] != '=' && in_[at_] != '\n') ++at_;
    }
    if (Peek() != '=' || Peek(1) == '=') return;
    ++at_;
    depth_ = 0;
    SkipSpace();
    if (Peek() == '{') {
      std::optional<PythonConstants::Dict> dict = DictLiteral();
      if (dict && AtLineEnd()) out_->dicts_[name] = std::move(*dict);
    } else {
      std::optional<std::string> text = Expression();
      if (text && AtLineEnd()) out_->strings_[name] = std::move(*text);
    }
  }

  bool AtLineEnd() {
    SkipSpace();
    return at_ >= in_.size() || in_[at_] == '\n' || in_[at_] == '#';
  }

  std::optional<PythonConstants::Dict> DictLiteral() {
    PythonConstants::Dict dict;
    ++at_, ++depth_;
    for (SkipSpace(); Peek() != '}'; SkipSpace()) {
      std::optional<std::string> key = Expression();
      SkipSpace();
      if (!key || Peek() != ':') return std::nullopt;
      ++at_;
      std::optional<std::string> value = Expression();
      SkipSpace();
      if (!value || (Peek() != ',' && Peek() != '}')) return std::nullopt;
      if (Peek() == ',') ++at_;
      dict.emplace_back(std::move(*key), std::move(*value));
    }
    ++at_, --depth_;
    return dict;
  }

  std::optional<std::string> Expression() {
    std::optional<std::string> sum = Term();
    for (SkipSpace(); sum && Peek() == '+'; SkipSpace()) {
      ++at_;
      const std::optional<std::string> next = Term();
      if (!next) return std::nullopt;
      *sum += *next;
    }
    return sum;
  }

  std::optional<std::string> Term() {
    SkipSpace();
    if (Peek() == '(') {
      if (depth_ > kMaxDepth) return std::nullopt;
      ++at_, ++depth_;
      std::optional<std::string> inner = Expression();
      SkipSpace();
      if (Peek() != ')') return std::nullopt;
      ++at_, --depth_;
      return inner;
    }
    if (StartsLiteral()) return Literals();
    if (!IsNameStart(Peek())) return std::nullopt;
    const std::string* known = out_->FindString(Name());
    return known == nullptr ? std::nullopt : std::optional(*known);
  }

  size_t PrefixLength() const {
    size_t length = 0;
    while (length < 2 && std::isalpha(static_cast<unsigned char>(Peek(length)))) ++length;
    return length;
  }

  bool StartsLiteral() const {
    const char quote = Peek(PrefixLength());
    return quote == '"' || quote == '\'';
  }

  std::optional<std::string> Literals() {
    std::string all;
    for (; StartsLiteral(); SkipSpace()) {
      std::string prefix;
      for (size_t length = PrefixLength(); length > 0; --length) {
        prefix.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(in_[at_++]))));
      }
      if (prefix != "" && prefix != "r" && prefix != "u") return std::nullopt;
      if (!Literal(prefix == "r", &all)) return std::nullopt;
    }
    return all;
  }

  bool Literal(bool raw, std::string* out) {
    const std::string quote = Quote();
    if (quote.size() == 1 && Peek(1) == quote[0]) {  // empty; three quotes were found above
      at_ += 2;
      return true;
    }
    at_ += quote.size();
    while (at_ < in_.size() && in_.compare(at_, quote.size(), quote) != 0) {
      if (in_[at_] == '\n' && quote.size() == 1) return false;
      if (in_[at_] != '\\') {
        out->push_back(in_[at_++]);
      } else if (raw) {  // the backslash stays, and still keeps a quote from ending the literal
        *out += in_.substr(at_, 2);
        at_ += 2;
      } else if (!Escape(out)) {
        return false;
      }
    }
    at_ += quote.size();
    return at_ <= in_.size();
  }

  bool Escape(std::string* out) {
    static constexpr std::string_view kNames = "\\'\"abfnrtv", kMeanings = "\\'\"\a\b\f\n\r\t\v";
    const char c = Peek(1);
    if (const size_t known = kNames.find(c); c != '\0' && known != std::string_view::npos) {
      out->push_back(kMeanings[known]);
    } else if (c == 'x' || c == 'u' || c == 'U') {
      return HexEscape(c == 'x' ? 2 : c == 'u' ? 4 : 8, out);
    } else if (c >= '0' && c <= '7') {
      return OctalEscape(out);
    } else if (c == 'N') {
      return false;          // names of characters
    } else if (c != '\n') {  // an escaped line end is nothing; an unknown escape stays as it is
      out->push_back('\\');
      ++at_;
      return true;
    }
    at_ += 2;
    return true;
  }

  bool HexEscape(size_t digits, std::string* out) {
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i) {
      const int digit = HexDigit(Peek(2 + i));
      if (digit < 0) return false;
      value = value << 4 | static_cast<uint32_t>(digit);
    }
    at_ += 2 + digits;
    return AppendUtf8(value, out);
  }

  bool OctalEscape(std::string* out) {
    uint32_t value = 0;
    size_t digits = 0;
    for (; digits < 3 && Peek(1 + digits) >= '0' && Peek(1 + digits) <= '7'; ++digits) {
      value = value * 8 + static_cast<uint32_t>(Peek(1 + digits) - '0');
    }
    at_ += 1 + digits;
    return AppendUtf8(value, out);
  }

  std::string in_;
  size_t at_ = 0;
  int depth_ = 0;  // open brackets of the expression
  PythonConstants* out_;
};

PythonConstants PythonConstants::Parse(std::string_view source) {
  PythonConstants constants;
  PythonScanner(source, &constants).Run();
  return constants;
}

const std::string* PythonConstants::FindString(const std::string& name) const {
  const auto it = strings_.find(name);
  return it == strings_.end() ? nullptr : &it->second;
}

const PythonConstants::Dict* PythonConstants::FindDict(const std::string& name) const {
  const auto it = dicts_.find(name);
  return it == dicts_.end() ? nullptr : &it->second;
}

}  // namespace cachalot

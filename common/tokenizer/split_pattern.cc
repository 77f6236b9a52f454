#include "common/tokenizer/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cctype>
#include <cstdint>
#include <cstdio>
#include <limits>

#include "common/base/check.h"
#include "common/tokenizer/unicode_additions.h"

namespace cachalot {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool IsHex(std::string_view text) {
  for (const char c : text) {
    if (!std::isxdigit(static_cast<unsigned char>(c))) return false;
  }
  return !text.empty();
}

/// The members of a general category, as they stand inside a PCRE2 class.
std::string CategoryMembers(char category) {
  std::string members = std::string("\\p{") + category + "}";
  for (const UnicodeAddition& addition : kUnicodeAdditions) {
    if (addition.category != category) continue;
    char range[32];
    std::snprintf(range, sizeof(range), "\\x{%X}-\\x{%X}", static_cast<unsigned>(addition.first),
                  static_cast<unsigned>(addition.last));
    members += range;
  }
  return members;
}

/// Copies a pattern piece by piece and stops at the first construct that is not known to mean the same in
/// both engines.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  StatusOr<std::string> Run() {
    while (at_ < in_.size()) RETURN_IF_ERROR(Item());
    return std::move(out_);
  }

 private:
  Status Refuse(std::string_view what) const {
    return InvalidArgument(
        "the pattern '" + std::string(in_) + "' has " + std::string(what) + " at byte " +
        std::to_string(at_) +
        "; supported are literals, [classes], (?:groups), look-ahead, alternatives, quantifiers, "
        "\\s, \\S and \\p{..} of L, M, N, P, S, Z");
  }

  bool Next(std::string_view expected) const { return in_.substr(at_, expected.size()) == expected; }

  void Copy(size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }

  Status Item() {
    switch (in_[at_]) {
      case '\\':
        return Escape(/*in_class=*/false);
      case '[':
        return Class();
      case '(':
        return Open();
      case '{':
        return Count();
      case '^':
      case '$':
      case '.':
        return Refuse("an anchor or a dot (their meaning depends on the engine's line mode)");
      case ']':
      case '}':
        out_ += '\\';
        break;
      default:
        break;
    }
    Copy(1);
    return OkStatus();
  }

  Status Open() {
    if (Next("(*")) return Refuse("'(*'");
    if (Next("(?")) {
      if (!Next("(?:") && !Next("(?=") && !Next("(?!")) return Refuse("an unsupported kind of group");
      Copy(3);
    } else {
      Copy(1);
    }
    return OkStatus();
  }

  /// {n}, {n,} or {n,m}. Oniguruma reads {,m}, {n}? and {n}+ differently from PCRE2.
  Status Count() {
    size_t end = at_ + 1;
    while (end < in_.size() && IsDigit(in_[end])) ++end;
    const bool has_low = end > at_ + 1;
    if (end < in_.size() && in_[end] == ',') ++end;
    while (end < in_.size() && IsDigit(in_[end])) ++end;
    if (!has_low || end >= in_.size() || in_[end] != '}')
      return Refuse("a '{' that is not {n}, {n,} or {n,m}");
    ++end;
    if (end < in_.size() && (in_[end] == '+' || in_[end] == '?')) return Refuse("a lazy or possessive {n}");
    Copy(end - at_);
    return OkStatus();
  }

  Status Class() {
    Copy(1);
    if (Next("^")) Copy(1);
    if (Next("]")) return Refuse("a class that starts with ']'");
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '[') return Refuse("an unescaped '[' inside a class");
      if (Next("&&")) return Refuse("a class intersection");
      if (in_[at_] == '\\') {
        RETURN_IF_ERROR(Escape(/*in_class=*/true));
      } else {
        Copy(1);
      }
    }
    if (at_ == in_.size()) return Refuse("a class without its ']'");
    Copy(1);
    return OkStatus();
  }

  Status Escape(bool in_class) {
    if (at_ + 1 == in_.size()) return Refuse("a lone backslash");
    const char c = in_[at_ + 1];
    if (std::ispunct(static_cast<unsigned char>(c)) || c == 'r' || c == 'n' || c == 't' || c == 'f') {
      Copy(2);
      return OkStatus();
    }
    switch (c) {
      case 's':  // PCRE2's own \s also takes U+180E, which is no white space since Unicode 6.3
      case 'S':
        out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
        at_ += 2;
        return OkStatus();
      case 'p':
      case 'P':
        return Property(in_class);
      case 'u':
        if (!IsHex(in_.substr(at_ + 2, 4)) || in_.size() - at_ < 6) return Refuse("a bad \\u");
        out_ += "\\x{" + std::string(in_.substr(at_ + 2, 4)) + "}";
        at_ += 6;
        return OkStatus();
      case 'x':
        return HexEscape();
      default:
        return Refuse(std::string("the escape '\\") + c + "'");
    }
  }

  Status HexEscape() {
    const size_t end = in_.find('}', at_);
    if (!Next("\\x{") || end == std::string_view::npos || !IsHex(in_.substr(at_ + 3, end - at_ - 3))) {
      return Refuse("a \\x that is not \\x{hex}");
    }
    Copy(end + 1 - at_);
    return OkStatus();
  }

  Status Property(bool in_class) {
    bool negated = in_[at_ + 1] == 'P';
    size_t name = at_ + 3;
    if (in_.substr(at_ + 2, 2) == "{^") {
      negated = !negated;
      ++name;
    }
    const bool known = in_.substr(at_ + 2, 1) == "{" && name + 1 < in_.size() && in_[name + 1] == '}' &&
                       std::string_view("LMNPSZ").find(in_[name]) != std::string_view::npos;
    if (!known) return Refuse("an unsupported property");
    if (in_class && negated) return Refuse("a negated property inside a class");
    const std::string members = CategoryMembers(in_[name]);
    out_ += in_class ? members : (negated ? "[^" : "[") + members + "]";
    at_ = name + 2;
    return OkStatus();
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
};

std::string PcreMessage(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

StatusOr<std::string> TranslateOniguruma(std::string_view pattern) { return Translator(pattern).Run(); }

void SplitPattern::Free::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }
void SplitPattern::Free::operator()(pcre2_real_match_context_8* context) const {
  pcre2_match_context_free(context);
}

StatusOr<SplitPattern> SplitPattern::Compile(std::string_view pattern) {
  ASSIGN_OR_RETURN(const std::string translated, TranslateOniguruma(pattern));
  int error = 0;
  size_t offset = 0;
  SplitPattern result;
  result.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr));
  if (!result.code_) {
    return InvalidArgument("the pattern '" + std::string(pattern) +
                           "' does not compile: " + PcreMessage(error));
  }
  uint32_t matches_empty = 0;
  pcre2_pattern_info(result.code_.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) {
    return InvalidArgument("the pattern '" + std::string(pattern) +
                           "' can match nothing, so it cannot split a text");
  }
  // Without a JIT (hardened kernels) pcre2_match interprets: slower, same result.
  pcre2_jit_compile(result.code_.get(), PCRE2_JIT_COMPLETE);
  // The default limit counts backtracking steps per match and would refuse a few megabytes of white space.
  result.context_.reset(pcre2_match_context_create(nullptr));
  CHECK(result.context_ != nullptr);
  pcre2_set_match_limit(result.context_.get(), std::numeric_limits<uint32_t>::max());
  return result;
}

Status SplitPattern::Split(std::span<const std::string_view> texts,
                           std::vector<std::string_view>* pieces) const {
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code_.get(), nullptr), &pcre2_match_data_free);
  CHECK(match != nullptr);
  for (const std::string_view text : texts) {
    size_t at = 0;
    while (at < text.size()) {
      const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
      // Checking UTF-8 again at every match would make the loop quadratic; the caller has done it once.
      uint32_t options = PCRE2_NO_UTF_CHECK;
      int found = pcre2_match(code_.get(), subject, text.size(), at, options, match.get(), context_.get());
      if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
        options |= PCRE2_NO_JIT;  // the interpreter keeps its frames on the heap
        found = pcre2_match(code_.get(), subject, text.size(), at, options, match.get(), context_.get());
      }
      if (found == PCRE2_ERROR_NOMATCH) break;
      if (found < 0)
        return ResourceExhausted("the pre-tokenizer gave up on this text: " + PcreMessage(found));
      const size_t* span = pcre2_get_ovector_pointer(match.get());
      if (span[0] > at) pieces->push_back(text.substr(at, span[0] - at));
      pieces->push_back(text.substr(span[0], span[1] - span[0]));
      at = span[1];
    }
    if (at < text.size()) pieces->push_back(text.substr(at));
  }
  return OkStatus();
}

}  // namespace cachalot

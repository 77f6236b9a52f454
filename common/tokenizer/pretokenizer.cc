#include "common/tokenizer/pretokenizer.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace cachalot {
namespace {

using Json = nlohmann::json;

constexpr char kExpected[] =
    "; expected DeepSeek's form: a Sequence of Split (pattern {\"Regex\": ..}, behavior Isolated, invert "
    "false) and last "
    "a ByteLevel (add_prefix_space false, use_regex false). Use the tokenizer.json of a DeepSeek-V3 or V4 "
    "checkpoint";

/// `object[key]` if it is there and is `expected`.
bool Is(const Json& object, const char* key, const Json& expected) {
  const auto it = object.find(key);
  return it != object.end() && *it == expected;
}

/// A short rendering for error messages. Cut at a character, since messages are UTF-8.
std::string Shown(const Json& value) {
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  if (text.size() > 160) text = text.substr(0, 160) + "...";
  return text;
}

Status Unexpected(const std::string& file, const std::string& where, const Json& found) {
  return InvalidArgument(file + ": " + where + " is " + Shown(found) + kExpected);
}

}  // namespace

StatusOr<PreTokenizer> PreTokenizer::FromJson(const Json& pre_tokenizer, const std::string& file) {
  if (!pre_tokenizer.is_object() || !Is(pre_tokenizer, "type", "Sequence") ||
      !pre_tokenizer.contains("pretokenizers") || !pre_tokenizer["pretokenizers"].is_array() ||
      pre_tokenizer["pretokenizers"].empty()) {
    return Unexpected(file, "pre_tokenizer", pre_tokenizer);
  }
  const Json& steps = pre_tokenizer["pretokenizers"];
  PreTokenizer result;
  for (size_t i = 0; i < steps.size(); ++i) {
    const std::string where = "pre_tokenizer.pretokenizers[" + std::to_string(i) + "]";
    const Json& step = steps[i];
    if (!step.is_object()) return Unexpected(file, where, step);
    if (i + 1 == steps.size()) {
      if (!Is(step, "type", "ByteLevel") || !Is(step, "add_prefix_space", false) ||
          !Is(step, "use_regex", false)) {
        return Unexpected(file, where, step);
      }
      break;
    }
    const bool split = Is(step, "type", "Split") && Is(step, "behavior", "Isolated") &&
                       Is(step, "invert", false) && step.contains("pattern") && step["pattern"].is_object() &&
                       step["pattern"].contains("Regex") && step["pattern"]["Regex"].is_string();
    if (!split) return Unexpected(file, where, step);
    StatusOr<SplitPattern> pattern =
        SplitPattern::Compile(step["pattern"]["Regex"].get_ref<const std::string&>());
    if (!pattern.ok()) return Annotate(pattern.status(), file + ": " + where);
    result.patterns_.push_back(std::move(*pattern));
  }
  return result;
}

StatusOr<std::vector<std::string_view>> PreTokenizer::Split(std::string_view text) const {
  std::vector<std::string_view> pieces, next;
  if (!text.empty()) pieces.push_back(text);
  for (const SplitPattern& pattern : patterns_) {
    next.clear();
    RETURN_IF_ERROR(pattern.Split(pieces, &next));
    pieces.swap(next);
  }
  return pieces;
}

}  // namespace cachalot

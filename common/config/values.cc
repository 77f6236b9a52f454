#include "common/config/values.h"

#include <charconv>
#include <cmath>

namespace cachalot {
namespace {

Status Expected(const std::string& what, const std::string& text) {
  return InvalidArgument("expected " + what + ", got '" + text + "'");
}

}  // namespace

StatusOr<int64_t> ParseInteger(const std::string& text, int64_t least, int64_t most) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || stop != end || error == std::errc::invalid_argument)
    return Expected("an integer", text);
  if (error != std::errc() || value < least || value > most) {
    return Expected("an integer from " + std::to_string(least) + " to " + std::to_string(most), text);
  }
  return value;
}

StatusOr<double> ParseNumber(const std::string& text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || stop != end || error != std::errc() || !std::isfinite(value))
    return Expected("a number", text);
  return value;
}

StatusOr<bool> ParseBool(const std::string& text) {
  if (text == "true") return true;
  if (text == "false") return false;
  return Expected("true or false", text);
}

StatusOr<Duration> ParseMilliseconds(const std::string& text) {
  const StatusOr<double> value = ParseNumber(text);
  // 1e12 ms are 31 years, and their nanoseconds fit.
  if (!value.ok() || *value < 0 || *value > 1e12) return Expected("milliseconds, at least 0", text);
  return Duration(std::llround(*value * 1e6));
}

StatusOr<std::vector<std::string>> ParseList(const std::string& text) {
  std::vector<std::string> items;
  if (text.empty()) return items;
  for (size_t at = 0;;) {
    const size_t comma = std::min(text.find(',', at), text.size());
    items.push_back(text.substr(at, comma - at));
    if (items.back().empty()) return Expected("a comma-separated list without empty items", text);
    if (comma == text.size()) return items;
    at = comma + 1;
  }
}

std::string NumberText(double value) {
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof(text), value);
  return std::string(text, end);
}

std::string ListText(const std::vector<std::string>& items) {
  std::string text;
  for (const std::string& item : items) text += (text.empty() ? "" : ",") + item;
  return text;
}

}  // namespace cachalot

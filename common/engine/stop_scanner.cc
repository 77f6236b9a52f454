#include "common/engine/stop_scanner.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace cachalot {
namespace {

std::vector<size_t> FallTable(const std::string& text) {
  std::vector<size_t> fall(text.size() + 1, 0);
  for (size_t i = 1; i < text.size(); ++i) {
    size_t k = fall[i];
    while (k > 0 && text[k] != text[i]) k = fall[k];
    fall[i + 1] = text[k] == text[i] ? k + 1 : 0;
  }
  return fall;
}

}  // namespace

Status ValidateStopStrings(const std::vector<std::string>& stop) {
  if (stop.size() > kMaxStopStrings)
    return InvalidArgument("stop: wanted at most " + std::to_string(kMaxStopStrings) + " strings, got " +
                           std::to_string(stop.size()));
  for (size_t i = 0; i < stop.size(); ++i)
    if (stop[i].empty() || stop[i].size() > kMaxStopBytes)
      return InvalidArgument("stop[" + std::to_string(i) + "]: wanted 1 to " + std::to_string(kMaxStopBytes) +
                             " bytes, got " + std::to_string(stop[i].size()));
  return OkStatus();
}

StopScanner::StopScanner(std::vector<std::string> stop) {
  CHECK(ValidateStopStrings(stop).ok());
  for (std::string& text : stop) {
    std::vector<size_t> fall = FallTable(text);
    patterns_.push_back({std::move(text), std::move(fall), 0});
  }
}

void StopScanner::Feed(char c) {
  for (Pattern& p : patterns_) {
    if (p.state == p.text.size()) p.state = p.fall[p.state];  // a match that did not count
    while (p.state > 0 && p.text[p.state] != c) p.state = p.fall[p.state];
    if (p.text[p.state] == c) ++p.state;
  }
}

std::string StopScanner::Push(std::string_view piece, bool may_match) {
  CHECK(!matched());
  std::string text = std::exchange(held_, {});
  if (patterns_.empty()) return text.append(piece);
  for (const char c : piece) {
    text.push_back(c);
    Feed(c);
    for (size_t i = 0; may_match && i < patterns_.size(); ++i) {
      const std::string& stop = patterns_[i].text;
      if (patterns_[i].state == stop.size() && (!matched() || stop.size() > match().size()))
        match_ = static_cast<int>(i);
    }
    if (!matched()) continue;
    text.resize(text.size() - match().size());
    return text;
  }
  size_t hold = 0;
  for (const Pattern& p : patterns_)
    hold = std::max(hold, p.state < p.text.size() ? p.state : p.fall[p.state]);
  held_ = text.substr(text.size() - hold);
  text.resize(text.size() - hold);
  return text;
}

std::string StopScanner::Finish() { return std::exchange(held_, {}); }

const std::string& StopScanner::match() const {
  static const std::string kNone;
  return matched() ? patterns_[match_].text : kNone;
}

}  // namespace cachalot

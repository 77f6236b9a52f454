#include "common/base/seconds_text.h"

namespace cachalot {

std::string SecondsText(Duration duration) {
  std::string text = std::to_string(Seconds(std::chrono::round<std::chrono::milliseconds>(duration)));
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text + " s";
}

}  // namespace cachalot

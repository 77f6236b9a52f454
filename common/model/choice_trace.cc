#include "common/model/choice_trace.h"

#include <algorithm>

namespace cachalot {

void ChoiceTrace::Apply(Kind kind, int layer, int64_t position, std::span<int32_t> ids) {
  const std::lock_guard lock(mutex_);
  const Key key{kind, layer, position};
  if (!replay_) {
    choices_[key].assign(ids.begin(), ids.end());
    return;
  }
  const auto choice = choices_.find(key);
  CHECK(choice != choices_.end() && choice->second.size() == ids.size());
  changed_ += !std::is_permutation(ids.begin(), ids.end(), choice->second.begin());
  std::copy(choice->second.begin(), choice->second.end(), ids.begin());
}

}  // namespace cachalot

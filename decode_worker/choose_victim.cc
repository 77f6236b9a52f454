#include "decode_worker/choose_victim.h"

namespace cachalot {

std::optional<size_t> ChooseVictim(std::span<const VictimView> sequences) {
  std::optional<size_t> stalled, youngest, oldest;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const VictimView& s = sequences[i];
    if (s.pinned) continue;
    if (s.stalled) {
      if (!stalled || s.order > sequences[*stalled].order) stalled = i;
      continue;
    }
    if (!youngest || s.order > sequences[*youngest].order) youngest = i;
    if (!oldest || s.order < sequences[*oldest].order) oldest = i;
  }
  if (stalled) return stalled;
  if (youngest == oldest) return std::nullopt;
  return youngest;
}

}  // namespace cachalot

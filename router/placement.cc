#include "router/placement.h"

#include <tuple>

namespace cachalot {

StatusOr<Placement> Place(std::span<const WorkerView> workers) {
  std::optional<size_t> best;
  const auto key = [&](const WorkerView& w) {
    // The request's own tokens are the same everywhere, but for those that are cached.
    const int64_t work = w.assigned - w.cached;
    return std::make_tuple(w.excluded, w.free_kv_tokens < w.wanted_kv_tokens, work, w.assigned, w.reported,
                           -w.free_kv_tokens);
  };
  std::string wrong;
  for (size_t i = 0; i < workers.size(); ++i) {
    if (!workers[i].health.ok()) {
      wrong += (wrong.empty() ? "" : "; ") + workers[i].name + ": " + StatusMessage(workers[i].health);
    } else if (!best || key(workers[i]) < key(workers[*best])) {
      best = i;
    }
  }
  if (!best) return Unavailable(wrong.empty() ? "no worker is configured" : "no worker is usable: " + wrong);
  const WorkerView& w = workers[*best];
  return Placement{*best,
                   w.name + " (assigned " + std::to_string(w.assigned) + ", reported " +
                       std::to_string(w.reported) +
                       (w.cached > 0 ? ", cached " + std::to_string(w.cached) : "") +
                       (w.excluded ? ", again for want of another)" : ")"),
                   w.cached};
}

}  // namespace cachalot

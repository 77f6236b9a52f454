#include "prefill_worker/chunk_planner.h"

#include <algorithm>

#include "common/kv/prefix_index.h"

namespace cachalot {
namespace {

constexpr int64_t kSnapshotEvery = 4096;

int64_t WholeBlocks(int64_t tokens) { return tokens / PrefixIndex::kBlockTokens * PrefixIndex::kBlockTokens; }

}  // namespace

std::vector<int64_t> PlanChunk(std::span<const int64_t> remaining, std::span<const int64_t> limits,
                               int64_t budget) {
  std::vector<int64_t> take(remaining.size());
  for (size_t i = 0; i < remaining.size() && budget > 0; ++i) {
    take[i] = std::min(remaining[i], budget);
    if (limits[i] > 0) take[i] = std::min(take[i], limits[i]);
    budget -= take[i];
  }
  return take;
}

int64_t RowsThatFit(int64_t unread, int64_t window, int64_t row_bytes) {
  if (unread > window / 2) return 0;
  const int64_t fit = (window - unread) / row_bytes;
  return unread == 0 ? std::max<int64_t>(fit, 1) : fit;
}

std::vector<int64_t> SnapshotCuts(int64_t tokens, int64_t from, int64_t branch) {
  std::vector<int64_t> cuts = {WholeBlocks(tokens - 1), WholeBlocks(std::min(branch, tokens))};
  if (WholeBlocks(tokens) == tokens) cuts.push_back(tokens);
  for (int64_t at = kSnapshotEvery; at < tokens; at += kSnapshotEvery) cuts.push_back(at);
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  std::erase_if(cuts, [from](int64_t cut) { return cut <= from; });
  return cuts;
}

}  // namespace cachalot

#pragma once
// Which tokens the next prefill step takes: a pure function.

#include <cstdint>
#include <span>
#include <vector>

namespace cachalot {

/// Tokens to take from each job, jobs in order of arrival: the oldest first, as many as fit into `budget`,
/// the last one cut. `limits[i]` > 0 caps what one step takes of job i. remaining[i] >= 0; 0 for one that is
/// held back. Sums to at most `budget` (>= 1).
std::vector<int64_t> PlanChunk(std::span<const int64_t> remaining, std::span<const int64_t> limits,
                               int64_t budget);

/// How many rows of `row_bytes` each the next chunk of a job may bring whose caller has `unread` bytes of
/// rows still to read: as many as fit into `window`, one if none fits into an empty one. None while more than
/// half is full: chunks of a slow reader would get smaller and smaller otherwise.
int64_t RowsThatFit(int64_t unread, int64_t window, int64_t row_bytes);

/// Where the KV of a context of `tokens` is worth keeping for other prompts, ascending; chunks end there. All
/// are multiples of PrefixIndex::kBlockTokens above `from`, up to which it came from the cache itself:
///  * the last one before the context's last token, where the same prompt would go on, and the context's end
///    if it is one, where a longer prompt would;
///  * every 4,096 tokens;
///  * `branch`, up to which the cache has its blocks: there it leaves another prompt, as it does behind a
///    system prompt or a document that they share, and a third is likely to leave both.
std::vector<int64_t> SnapshotCuts(int64_t tokens, int64_t from, int64_t branch);

}  // namespace cachalot

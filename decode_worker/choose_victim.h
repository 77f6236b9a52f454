#pragma once
// Which sequence gives up its KV when a running one needs a block and none is free. Pure.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace cachalot {

struct VictimView {
  uint64_t order = 0;    // of joining the batch: the higher, the younger
  bool stalled = false;  // its reader lags by a whole window: it cannot use its KV now
  bool pinned = false;   // it holds all that it will ever need, and nobody could resume it elsewhere
};

/// An index into `sequences`, or nothing: then the one that needs the block waits for one.
///
/// Stalled sequences go first, the youngest of them before the others; then the youngest of those that run.
/// Never the oldest that runs, nor a pinned one. What that guarantees, where each sequence alone fits into
/// the pool:
///
///  1. The oldest that runs always gets its block. All others that run and are not pinned can be taken from
///  it, pinned
///     ones need nothing more and end by themselves, and leases that do not run yet join soon or are freed.
///     So it reaches its end (or stalls, and then the next one is the oldest).
///  2. A victim comes back as the youngest, and every time with at least one token more than before: the
///  prefill itself
///     gives one. So a sequence is preempted at most as often as it has tokens, and no two can push each
///     other out for ever.
///
/// Together: while readers read, every sequence ends. tests/decode_worker/choose_victim_test.cc plays it.
std::optional<size_t> ChooseVictim(std::span<const VictimView> sequences);

}  // namespace cachalot

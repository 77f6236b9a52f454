#pragma once
// A write to a client that may not read for long, beside which somebody looks whether that can go on.

#include <algorithm>
#include <functional>
#include <utility>

#include "common/base/time.h"
#include "common/rpc/event.h"
#include "common/rpc/task_group.h"

namespace cachalot {

/// Asks `give_up` once `patience` has passed, and again and again until that says true or `written` is set.
inline rpc::Task<void> WatchWrite(rpc::Loop* loop, rpc::Event* written, Duration patience,
                                  std::function<bool()> give_up) {
  constexpr Duration kLook = std::chrono::milliseconds(100);
  Duration wait = patience;
  for (;;) {
    const bool over = co_await written->WaitFor(wait);
    if (over || loop->draining()) co_return;
    if (give_up()) co_return;
    wait = std::min(patience, kLook);
  }
}

/// co_await: what `write` says. The write is not ended by `give_up`, which is no coroutine: it lets go of what others
/// need meanwhile.
inline rpc::Task<bool> WatchedWrite(rpc::Loop* loop, rpc::Task<bool> write, Duration patience,
                                    std::function<bool()> give_up) {
  rpc::Event written(loop);
  rpc::TaskGroup watch(loop);
  watch.Spawn(WatchWrite(loop, &written, patience, std::move(give_up)), "watch over a write");
  const bool there = co_await std::move(write);
  written.Set();
  co_await watch.JoinAll();
  co_return there;
}

}  // namespace cachalot

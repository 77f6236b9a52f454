#pragma once
// Accepted requests that were preempted, whose decode worker died where the others are full, or that full prefill
// workers refuse, wait in a line for room: first come, first served. While somebody waits no new request is taken,
// since KV that becomes free is theirs. Loop thread only.

#include <algorithm>
#include <cstdint>
#include <set>

#include "router/worker_api.h"

namespace cachalot {

class ResumeLine {
 public:
  /// A place in the line, at its end; left when destroyed.
  class Place {
   public:
    explicit Place(ResumeLine* line) : line_(line), ticket_(line->next_++) {
      line_->tickets_.insert(ticket_);
    }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    ~Place() { line_->tickets_.erase(ticket_); }
    bool first() const { return *line_->tickets_.begin() == ticket_; }

   private:
    ResumeLine* line_;
    const uint64_t ticket_;
  };
  size_t size() const { return tickets_.size(); }

 private:
  std::set<uint64_t> tickets_;
  uint64_t next_ = 0;
};

/// Whether a sequence that was preempted, of `context` tokens and `at_most` in all, should go to a worker of this load:
/// there is what its lease begins with, at least a block behind its context, and a block for every sequence that is
/// there, so that it is not preempted again at the next step. An idle worker is always worth a try.
inline bool RoomToResume(const WorkerLoad& load, int64_t context, int64_t at_most) {
  constexpr int64_t kBlockTokens = 128;
  const int64_t others = std::max(load.running, load.leases);
  const int64_t first = FirstKvTokens(context, at_most, std::max(load.reserve_ahead, kBlockTokens));
  const int64_t blocks = (first + kBlockTokens - 1) / kBlockTokens;
  return others == 0 || load.free_kv_tokens >= kBlockTokens * (blocks + others);
}

}  // namespace cachalot

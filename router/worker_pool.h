#pragma once
// The workers that a router knows, and how much of its own work each has. They come and go while requests run:
// an id names one worker for ever. Loop thread only.

#include <map>
#include <memory>
#include <set>
#include <vector>

#include "common/rpc/event.h"
#include "router/placement.h"
#include "router/worker_api.h"

namespace cachalot {

/// KV of a request: for `context` tokens now, for `at_most` in the end.
struct KvNeed {
  int64_t context = 0, at_most = 0;
};

/// By worker: tokens of a request that it is likely to have in its prefix cache.
using CachedTokens = std::map<size_t, int64_t>;

/// `Worker` is DecodeWorker or PrefillWorker.
template <typename Worker>
class WorkerPool {
 public:
  /// Its id.
  size_t Add(std::unique_ptr<Worker> worker) {
    members_[next_id_].worker = std::move(worker);
    return next_id_++;
  }
  /// A draining worker gets no new work; what runs there goes on.
  void SetDraining(size_t id, bool draining) { members_.at(id).draining = draining; }
  /// Whether work of ours is there.
  bool Busy(size_t id) const { return members_.at(id).assignments > 0; }
  /// Destroys it. False, and nothing happens, while it is busy.
  bool Erase(size_t id) {
    if (Busy(id)) return false;
    members_.erase(id);
    return true;
  }

  size_t size() const { return members_.size(); }
  /// One that is busy, or that Choose gave in this turn of the loop; others may have gone.
  Worker& worker(size_t id) { return *members_.at(id).worker; }
  /// OK when `id` is still there and may get work; else why not.
  Status Usable(size_t id) const {
    const auto at = members_.find(id);
    return at == members_.end() ? Unavailable("the worker has gone") : Health(at->second);
  }
  size_t usable() const {
    size_t count = 0;
    for (const auto& [id, m] : members_) count += Health(m).ok();
    return count;
  }
  /// Those that may get work, for calls that any of them can answer.
  std::vector<std::string> UsableNames() const {
    std::vector<std::string> names;
    for (const auto& [id, m] : members_)
      if (Health(m).ok()) names.push_back(m.worker->name());
    return names;
  }

  /// `cached` may be null.
  StatusOr<Placement> Choose(const std::set<size_t>& excluded, KvNeed need,
                             const CachedTokens* cached = nullptr) const {
    std::vector<WorkerView> views;
    std::vector<size_t> ids;
    for (const auto& [id, m] : members_) {
      const WorkerLoad load = m.worker->load();
      views.push_back({m.worker->name(), Health(m), excluded.contains(id), m.assigned,
                       load.running + load.waiting_tokens, load.free_kv_tokens,
                       FirstKvTokens(need.context, need.at_most, load.reserve_ahead)});
      if (cached && cached->contains(id)) views.back().cached = cached->at(id);
      ids.push_back(id);
    }
    StatusOr<Placement> placement = Place(views);
    if (placement.ok()) placement->worker = ids[placement->worker];
    return placement;
  }

  /// Counts `amount` of work at worker `id` until destroyed, and keeps the worker that long.
  class Assignment {
   public:
    Assignment() = default;
    Assignment(WorkerPool* pool, size_t id, int64_t amount) : pool_(pool), id_(id), amount_(amount) {
      Member& member = pool_->members_.at(id_);
      member.assigned += amount_;
      ++member.assignments;
    }
    Assignment(Assignment&& other) noexcept { *this = std::move(other); }
    Assignment& operator=(Assignment&& other) noexcept {
      std::swap(pool_, other.pool_);
      std::swap(id_, other.id_);
      std::swap(amount_, other.amount_);
      return *this;
    }
    ~Assignment() {
      if (!pool_) return;
      Member& member = pool_->members_.at(id_);
      member.assigned -= amount_;
      --member.assignments;
    }

   private:
    WorkerPool* pool_ = nullptr;
    size_t id_ = 0;
    int64_t amount_ = 0;
  };

 private:
  struct Member {
    std::unique_ptr<Worker> worker;
    int64_t assigned = 0;
    int assignments = 0;
    bool draining = false;
  };
  static Status Health(const Member& member) {
    return member.draining ? Unavailable("it is leaving: DNS does not name it any more") : member.worker->health();
  }

  std::map<size_t, Member> members_;
  size_t next_id_ = 0;
};

}  // namespace cachalot

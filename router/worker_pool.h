#pragma once
// The workers that a router knows, and how much of its own work each has. Loop thread only.

#include <memory>
#include <set>
#include <vector>

#include "common/rpc/event.h"
#include "router/placement.h"
#include "router/worker_api.h"

namespace cachalot {

/// `Worker` is DecodeWorker or PrefillWorker.
template <typename Worker>
class WorkerPool {
 public:
  void Add(std::unique_ptr<Worker> worker) { members_.push_back({std::move(worker), 0}); }
  size_t size() const { return members_.size(); }
  Worker& worker(size_t i) { return *members_[i].worker; }
  size_t usable() const {
    size_t count = 0;
    for (const Member& m : members_) count += m.worker->health().ok();
    return count;
  }

  StatusOr<Placement> Choose(const std::set<size_t>& excluded, int64_t kv_tokens) const {
    std::vector<WorkerView> views;
    for (size_t i = 0; i < members_.size(); ++i) {
      const Member& m = members_[i];
      const WorkerLoad load = m.worker->load();
      views.push_back({m.worker->name(), m.worker->health(), excluded.contains(i), m.assigned,
                       load.running + load.waiting_tokens, load.free_kv_tokens});
    }
    return Place(views, kv_tokens);
  }

  /// Counts `amount` of work at worker i until destroyed.
  class Assignment {
   public:
    Assignment() = default;
    Assignment(WorkerPool* pool, size_t i, int64_t amount) : pool_(pool), i_(i), amount_(amount) {
      pool_->members_[i_].assigned += amount_;
    }
    Assignment(Assignment&& other) noexcept { *this = std::move(other); }
    Assignment& operator=(Assignment&& other) noexcept {
      std::swap(pool_, other.pool_);
      std::swap(i_, other.i_);
      std::swap(amount_, other.amount_);
      return *this;
    }
    ~Assignment() {
      if (pool_) pool_->members_[i_].assigned -= amount_;
    }

   private:
    WorkerPool* pool_ = nullptr;
    size_t i_ = 0;
    int64_t amount_ = 0;
  };

 private:
  struct Member {
    std::unique_ptr<Worker> worker;
    int64_t assigned;
  };
  std::vector<Member> members_;
};

}  // namespace cachalot

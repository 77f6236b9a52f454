#pragma once
// What Membership needs of the client of a worker, whatever the worker's role.

#include "common/base/status.h"
#include "common/rpc/task.h"

namespace cachalot {

class MemberClient {
 public:
  virtual ~MemberClient() = default;
  /// Connects, and again after each loss, until the loop stops or Stop was called. Once. Nothing of the client
  /// runs when it has ended.
  virtual rpc::Task<void> Run() = 0;
  /// Whether it answers and fits. One that drains does, though it takes no new work: what runs there goes on.
  virtual Status connection() const = 0;
  /// Ends Run soon. Calls that run are not cancelled, but a decode worker's requests fail.
  virtual void Stop() = 0;
  /// It gets no new work: its Compat binds the cluster no longer.
  virtual void Leave() = 0;
  /// It may get work again. False: the cluster is another one by now.
  virtual bool Rejoin() = 0;
};

}  // namespace cachalot

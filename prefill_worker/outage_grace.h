#pragma once
// For how long a chunk waits for experts that are away. Pure: it is told the time.

#include "common/base/time.h"

namespace cachalot {

/// An outage may last 5 s. Behind one that has ended jobs the next job does not wait as long again, but 1 s: the shard
/// may be back and only the connection not yet.
class OutageGrace {
 public:
  /// A call that was first tried at `begun` has failed at `now`. Whether to try it again.
  bool Failed(TimePoint begun, TimePoint now) {
    // An outage that ended with the job it failed is not this one.
    if (since_ == TimePoint::max() || now - last_failure_ > kGrace) since_ = begun;
    last_failure_ = now;
    return now - since_ < kGrace || now - begun < kLeastTry;
  }
  /// They have answered, or nobody waits for the answer any more.
  void Over() { since_ = TimePoint::max(); }

 private:
  static constexpr Duration kGrace = std::chrono::seconds(5), kLeastTry = std::chrono::seconds(1);
  TimePoint since_ = TimePoint::max();  // max: none
  TimePoint last_failure_;
};

}  // namespace cachalot

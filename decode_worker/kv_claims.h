#pragma once
// Who has a claim on KV that becomes free. A worker serves several routers: what it took from the requests of one
// must not go to new requests of another before they are back. Pure: it is told the time.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "common/base/time.h"

namespace cachalot {

class KvClaims {
 public:
  /// How long a preempted request's claim lasts: its router opens it again as soon as there is room, unless it has
  /// gone elsewhere or its client has left.
  static constexpr Duration kClaim = std::chrono::seconds(5);
  /// How long a refusal shows that KV is wanted; who still wants it asks again.
  static constexpr Duration kWanted = std::chrono::seconds(2);

  /// A running request has given up its KV and will be opened again.
  void Preempted(uint64_t session, const std::string& request, TimePoint now) {
    claims_[{session, request}] = now + kClaim;
  }
  /// 0: the request may have what is free. Else how many preempted ones of other Sessions come first. Requests that
  /// run, here or elsewhere before, never stand back: their clients have seen output. Nor does one of the same Session:
  /// its router lets those that wait go first by itself.
  size_t Before(uint64_t session, bool is_new, TimePoint now) {
    if (!is_new) return 0;
    Expire(now);
    size_t others = 0;
    for (const auto& [key, until] : claims_) others += key.first != session;
    return others;
  }
  /// It has its KV, again or for the first time.
  void Granted(uint64_t session, const std::string& request) { claims_.erase({session, request}); }
  /// Somebody got no KV.
  void Refused(TimePoint now) { wanted_until_ = now + kWanted; }
  /// Its router has gone: whoever continues its requests has a Session of its own.
  void Forget(uint64_t session) {
    claims_.erase(claims_.lower_bound({session, ""}), claims_.lower_bound({session + 1, ""}));
  }
  /// Somebody waits for KV, or did a moment ago.
  bool wanted(TimePoint now) const {
    for (const auto& [key, until] : claims_)
      if (now < until) return true;
    return now < wanted_until_;
  }

 private:
  void Expire(TimePoint now) {
    std::erase_if(claims_, [now](const auto& claim) { return now >= claim.second; });
  }
  std::map<std::pair<uint64_t, std::string>, TimePoint> claims_;  // until when, by Session and request
  TimePoint wanted_until_ = TimePoint::min();
};

}  // namespace cachalot

#pragma once
// A TCP proxy between two processes that breaks their link on purpose, at a byte that the test chooses.
//
// It forwards bytes and knows no protocol, but it can tell connections apart by marks: texts that occur in
// what the client has sent (gRPC sends a method's path in plain when a connection first uses it).

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/base/time.h"

namespace cachalot::testing {

enum class Way { kToServer, kToClient, kBoth };

/// One thing that goes wrong. It strikes once: when `after_bytes` bytes have gone the `way` since Set, over
/// all connections that it is about, or at once when that is 0 and Set finds such a connection.
struct LinkFault {
  enum class Kind {
    kNone,
    kDelay,   ///< from then on every chunk waits for `delay`, at most 10 s
    kHold,    ///< from then on nothing arrives, no data and no end; Heal delivers what was held, as TCP would
    kCut,     ///< all connections are reset; new ones pass
    kRefuse,  ///< all are reset, new ones refused until Heal
    kFlip,    ///< the byte behind the first `after_bytes` is XORed with `mask`; all others pass
    kFlipChunk,   ///< as kFlip, but the first byte of the next chunk: nearly always a length of HTTP/2
    kFlipInside,  ///< as kFlip, but in the middle of the next chunk of 1 KiB or more: payload, not framing
  };
  Kind kind = Kind::kNone;
  Way way = Way::kBoth;
  int64_t after_bytes = 0;
  Duration delay{};
  uint8_t mask = 0x80;
  std::string only;        ///< about connections with this mark; empty: about all
  bool spare_new = false;  ///< kDelay, kHold: connections made after the strike pass
};

struct LinkCounters {
  int64_t accepted = 0, open = 0;        // connections
  int64_t to_server = 0, to_client = 0;  // bytes read
  int64_t strikes = 0, resets = 0;       // faults that came to pass; connections reset by them
};

inline constexpr int kLinkProxyHost = 201;

/// Has a thread of its own. All methods may be called from any thread and take effect before they return.
class LinkProxy {
 public:
  /// Listens on a free port of OwnHost(kLinkProxyHost), which nobody else takes while it refuses connections,
  /// and forwards to `target`, an IPv4 host:port (may come later, with SetTarget). INVALID_ARGUMENT for
  /// another address.
  static StatusOr<std::unique_ptr<LinkProxy>> Listen(const std::string& target,
                                                     std::vector<std::string> marks = {});
  ~LinkProxy();
  LinkProxy(const LinkProxy&) = delete;
  LinkProxy& operator=(const LinkProxy&) = delete;

  const std::string& address() const;
  /// New connections go there: the server was restarted elsewhere.
  void SetTarget(const std::string& target);

  /// Takes the place of the fault before, which is healed.
  void Set(LinkFault fault);
  /// Back to passing everything on; what was held back is delivered.
  void Heal() { Set({}); }
  /// Until the fault of the last Set has struck; false when it has not after `at_most`.
  bool WaitStruck(Duration at_most);

  LinkCounters counters() const;

 private:
  struct Impl;
  explicit LinkProxy(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace cachalot::testing

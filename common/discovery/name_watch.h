#pragma once
// Names that are asked for again and again, and what they led to last.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/time.h"
#include "common/discovery/resolver.h"
#include "common/discovery/seed.h"

namespace cachalot {

struct NameWatchOptions {
  Duration interval = std::chrono::seconds(5);  // between two questions for a name
  /// The same when the answer is needed soon, or the name never had one.
  Duration at_least = std::chrono::milliseconds(200);
};

/// Thread-safe. What is asked when it goes is forgotten.
class NameWatch {
 public:
  /// `resolver` may be null when there are no names. `what` is for the log: "decode workers".
  NameWatch(std::string what, std::vector<Seed> names, Resolver* resolver, NameWatchOptions options = {});

  bool empty() const;
  /// Asks for every name that is due. `on_answer` is called behind each answer, on a thread of the resolver's or
  /// here.
  void Ask(TimePoint now, bool soon, const std::function<void()>& on_answer = {});
  /// host:port of every address of every name, by its last answer that had any: one that fails or is empty says
  /// nothing about anybody.
  std::vector<std::string> Addresses() const;
  /// "dns:NAME:PORT: why; ..." of the names whose last question had no answer, or "".
  std::string Trouble() const;

 private:
  struct State;
  Resolver* const resolver_;
  const NameWatchOptions options_;
  const std::shared_ptr<State> state_;  // answers may outlive this
};

}  // namespace cachalot

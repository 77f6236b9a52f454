#pragma once
// DNS by c-ares, on a thread of its own. Each question is asked anew: no cache keeps a pod that has gone.

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "common/base/time.h"
#include "common/discovery/resolver.h"

namespace cachalot {

struct AresOptions {
  /// IP:PORT,IP:PORT instead of the servers of /etc/resolv.conf (and then without /etc/hosts).
  std::string servers;
  Duration timeout = std::chrono::milliseconds(1000);  // of one question to one server; doubles with each round
  int tries = 2;                                       // rounds
};

class AresResolver final : public Resolver {
 public:
  /// INVALID_ARGUMENT when `servers` are no addresses.
  static StatusOr<std::unique_ptr<AresResolver>> Make(AresOptions options);
  /// What is still asked ends CANCELLED.
  ~AresResolver() override;

  /// Questions are asked one after the other. AAAA records count only where the name has no A record: a pod of
  /// two address families has one of each, and is one member.
  void Resolve(const std::string& name, Done done) override;

 private:
  struct Question {
    std::string name;
    Done done;
  };
  AresResolver(AresOptions options, int stop_fd);
  void Run();
  StatusOr<std::vector<std::string>> Ask(const std::string& name) const;
  /// NOT_FOUND when the server says that there are none.
  StatusOr<std::vector<std::string>> AskFamily(const std::string& name, int family) const;

  const AresOptions options_;
  const int stop_fd_;  // readable when the resolver goes
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Question> questions_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace cachalot

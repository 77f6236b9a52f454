#pragma once
// A DNS server on loopback whose records a test changes: A and AAAA over UDP, nothing else.

#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace cachalot::testing {

class DnsServer {
 public:
  enum class Mode {
    kAnswer,
    kFail,      // SERVFAIL
    kSilent,    // no answer
    kTruncate,  // sets TC: ask over TCP, where nobody listens
  };

  DnsServer();
  ~DnsServer();

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  /// All addresses of `name` from now on, IPv4 and IPv6; none: the name exists without addresses. Names that
  /// were never set do not exist.
  void Set(const std::string& name, std::vector<std::string> addresses);
  void SetMode(Mode mode) { mode_ = mode; }
  int queries() const { return queries_; }

 private:
  void Run();
  std::string Answer(const std::string& query);

  int fd_ = -1, port_ = 0;
  std::atomic<bool> stopping_ = false;
  std::atomic<Mode> mode_ = Mode::kAnswer;
  std::atomic<int> queries_ = 0;
  std::mutex mutex_;
  std::map<std::string, std::vector<std::string>> records_;
  std::thread thread_;
};

}  // namespace cachalot::testing

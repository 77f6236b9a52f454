#pragma once
// Two prefill workers, two decode workers, two expert shards and a router, every link between two of them
// through a proxy that can break it; and sixteen streams whose tokens are known.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/integration/cluster_fixture.h"
#include "tests/support/link_proxy.h"
#include "tests/support/metrics.h"

namespace cachalot::testing {

inline constexpr char kSessionMark[] = "/cachalot.v1.Decode/Session";
inline constexpr char kPushMark[] = "/cachalot.v1.KvTransfer/Push";
inline constexpr size_t kStreams = 16;
inline constexpr Duration kStrikes = std::chrono::seconds(20);  ///< until a fault has struck

/// Where a link begins and ends. One worker's links of a kind share a proxy, apart from kDecode0 and
/// kDecode1: these serve the router's Session and both prefill workers' pushes, which the marks tell apart.
enum class Link {
  kClient,  ///< client -> router
  kPrefill0,
  kPrefill1,  ///< router -> prefill worker
  kDecode0,
  kDecode1,  ///< router and prefill workers -> decode worker
  kPrefillExpert0,
  kPrefillExpert1,  ///< prefill workers -> expert shard
  kDecodeExpert0,
  kDecodeExpert1,  ///< decode workers -> expert shard
};
inline constexpr int kLinks = 9;

class LinkedCluster {
 public:
  enum class Role { kExpert, kPrefill, kDecode, kRouter };
  struct Member {
    std::unique_ptr<ChildProcess> process;
    std::string address;  // its own, behind the proxies
  };
  struct Options {
    std::string model;
    std::vector<std::string> decode_flags, router_flags;
    int routers = 1;  // those behind the first have no proxy in front
  };

  static StatusOr<std::unique_ptr<LinkedCluster>> Start(Options options);

  LinkProxy& link(Link which) { return *links_[static_cast<int>(which)]; }
  /// The router, through its link.
  const std::string& address() { return link(Link::kClient).address(); }
  Member& member(Role role, int i) { return members_[static_cast<int>(role)][i]; }
  /// Where a prefill or decode worker or a router serves its metrics.
  static std::string MetricsOf(Role role, int i) {
    return MetricsAddress(10 * static_cast<int>(role) + 1 + i);
  }

  /// A process in its place, after it has ended: with a new address and epoch, behind the same links.
  Status Restart(Role role, int i);
  void HealAll();

  /// Until no prefill or decode worker holds a block, a lease or a job, and no router a request.
  Status WaitNothingHeld(Duration at_most);
  /// "" or who has ended.
  std::string Ended();

 private:
  explicit LinkedCluster(Options options) : options_(std::move(options)) {}
  Status Spawn(Role role, int i);
  /// "" or what it holds. Not while it is stopped.
  StatusOr<std::string> HeldBy(Role role, int i);
  std::vector<Link> LinksTo(Role role, int i) const;

  const Options options_;
  std::vector<std::unique_ptr<LinkProxy>> links_;
  std::vector<Member> members_[4];
};

/// Requests of verses, short and long, greedy and sampled, and what the embedded mode answers.
struct Workload {
  std::vector<client::GenerateRequest> requests;
  std::vector<std::vector<int32_t>> answers;
};
StatusOr<Workload> MakeWorkload(int max_tokens, size_t streams = kStreams);  // the same one every time

struct StreamsResult {
  std::vector<Output> outputs;
  Duration longest_silence{};  // of any stream, between two events
  Duration total{};
};

/// One line for whoever collects what was measured: the test and `run`, the longest silence of any stream,
/// and how long they all took.
void PrintSilence(const StreamsResult& result, const char* run = "fault");

/// Starts all streams of a workload at a router, each from a thread and a client of its own.
class Streams {
 public:
  Streams(const std::string& router, const Workload& workload);
  ~Streams();
  /// Until all together have `tokens` tokens; else the test fails, since it shows nothing.
  bool WaitTokens(size_t tokens);
  /// All streams leave, wherever they are.
  void Leave();
  /// Waits for all.
  StreamsResult Join();

 private:
  void RunOne(size_t i, const std::string& router, const client::GenerateRequest& request);

  const TimePoint begin_ = std::chrono::steady_clock::now();
  std::mutex mutex_;
  std::condition_variable more_;
  size_t tokens_ = 0;                          // of all; guarded by mutex_
  bool leaving_ = false;                       // guarded by mutex_
  std::vector<client::TokenStream*> running_;  // guarded by mutex_; null: not yet, or no more
  std::vector<Output> outputs_;
  std::vector<Duration> silences_;
  std::vector<std::thread> threads_;
};

/// Calls `strike` from this thread once all streams together have `tokens` tokens, which says nothing of
/// prompts.
StreamsResult RunWith(const std::string& router, const Workload& workload, size_t tokens,
                      const std::function<void()>& strike);

}  // namespace cachalot::testing

#include "tests/integration/link_faults_cluster.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <thread>
#include <utility>

#include "tests/support/patience.h"

namespace cachalot::testing {
namespace {

constexpr Duration kStart = std::chrono::seconds(60) * kSlowdown;
constexpr int kEach = 2;  // processes of a role but the router
constexpr uint32_t kSeed = 1616;

using Words = std::vector<std::string>;

}  // namespace

std::vector<Link> LinkedCluster::LinksTo(Role role, int i) const {
  const auto nth = [i](Link first) { return static_cast<Link>(static_cast<int>(first) + i); };
  switch (role) {
    case Role::kExpert:
      return {nth(Link::kPrefillExpert0), nth(Link::kDecodeExpert0)};
    case Role::kPrefill:
      return {nth(Link::kPrefill0)};
    case Role::kDecode:
      return {nth(Link::kDecode0)};
    case Role::kRouter:
      if (i == 0) return {Link::kClient};
      break;
  }
  return {};
}

Status LinkedCluster::Spawn(Role role, int i) {
  const auto both = [this](Link first) {
    return link(first).address() + "," + link(static_cast<Link>(static_cast<int>(first) + 1)).address();
  };
  Words argv;
  switch (role) {
    case Role::kExpert:
      argv = {"cachalot-expert",       "--model", options_.model, "--threads", "1", "--shard",
              std::to_string(i) + "/2"};
      break;
    case Role::kPrefill:
      argv = {"cachalot-prefill", "--model", options_.model, "--experts", both(Link::kPrefillExpert0)};
      break;
    case Role::kDecode:
      argv = {"cachalot-decode", "--model", options_.model, "--experts", both(Link::kDecodeExpert0)};
      argv.insert(argv.end(), options_.decode_flags.begin(), options_.decode_flags.end());
      break;
    case Role::kRouter:
      argv = {"cachalot-router", "--prefill", both(Link::kPrefill0), "--decode", both(Link::kDecode0)};
      argv.insert(argv.end(), options_.router_flags.begin(), options_.router_flags.end());
      break;
  }
  argv[0] = CACHALOT_BINARY_DIR "/" + argv[0];
  argv.insert(argv.end(), {"--listen", "127.0.0.1:0", "--die-with-parent", "--log-level", "error"});
  if (role != Role::kExpert) argv.insert(argv.end(), {"--metrics-listen", MetricsOf(role, i)});
  ASSIGN_OR_RETURN(member(role, i).process, ChildProcess::Spawn({.argv = argv}));
  return OkStatus();
}

StatusOr<std::unique_ptr<LinkedCluster>> LinkedCluster::Start(Options options) {
  std::unique_ptr<LinkedCluster> cluster(new LinkedCluster(std::move(options)));
  for (int i = 0; i < kLinks; ++i) {
    ASSIGN_OR_RETURN(auto link, LinkProxy::Listen("", {kSessionMark, kPushMark}));
    cluster->links_.push_back(std::move(link));
  }
  const TimePoint deadline = std::chrono::steady_clock::now() + kStart;
  for (Role role : {Role::kExpert, Role::kPrefill, Role::kDecode, Role::kRouter}) {
    const int count = role == Role::kRouter ? cluster->options_.routers : kEach;
    auto& members = cluster->members_[static_cast<int>(role)];
    members.resize(count);
    for (int i = 0; i < count; ++i) RETURN_IF_ERROR(cluster->Spawn(role, i));
    for (int i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(members[i].address, members[i].process->WaitReady(deadline));
      for (Link link : cluster->LinksTo(role, i)) cluster->link(link).SetTarget(members[i].address);
    }
  }
  return cluster;
}

Status LinkedCluster::Restart(Role role, int i) {
  RETURN_IF_ERROR(Spawn(role, i));
  Member& restarted = member(role, i);
  ASSIGN_OR_RETURN(restarted.address,
                   restarted.process->WaitReady(std::chrono::steady_clock::now() + kStart));
  for (Link which : LinksTo(role, i)) link(which).SetTarget(restarted.address);
  return OkStatus();
}

void LinkedCluster::HealAll() {
  for (auto& link : links_) link->Heal();
}

StatusOr<std::string> LinkedCluster::HeldBy(Role role, int i) {
  Member& m = member(role, i);
  const std::string who = m.process->name() + " at " + m.address;
  if (role == Role::kRouter) {
    const double requests = Metric(MetricsOf(role, i), "cachalot_router_running_requests");
    if (requests < 0) return who + " does not say what it holds. ";
    return requests > 0 ? who + " holds " + std::to_string(requests) + " requests. " : "";
  }
  ASSIGN_OR_RETURN(const v1::Description description, ProcessCluster::Describe(m.address));
  const v1::Load& load = description.load();
  if (!load.used_kv_blocks() && !load.leases() && !load.running_sequences()) return std::string();
  return who + " holds " + std::to_string(load.used_kv_blocks()) + " blocks, " +
         std::to_string(load.leases()) + " leases, " + std::to_string(load.running_sequences()) +
         " sequences. ";
}

Status LinkedCluster::WaitNothingHeld(Duration at_most) {
  const TimePoint end = std::chrono::steady_clock::now() + at_most;
  std::string held;
  do {
    held.clear();
    for (Role role : {Role::kPrefill, Role::kDecode, Role::kRouter})
      for (size_t i = 0; i < members_[static_cast<int>(role)].size(); ++i) {
        if (!member(role, static_cast<int>(i)).process->Running()) continue;
        ASSIGN_OR_RETURN(const std::string what, HeldBy(role, static_cast<int>(i)));
        held += what;
      }
    if (held.empty()) return OkStatus();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // between looks at other processes
  } while (std::chrono::steady_clock::now() < end);
  return DeadlineExceeded("still held: " + held);
}

std::string LinkedCluster::Ended() {
  std::string ended;
  for (auto& group : members_)
    for (Member& m : group)
      if (!m.process->Running()) ended += m.process->name() + " at " + m.address + " ";
  return ended;
}

StatusOr<Workload> MakeWorkload(int max_tokens, size_t streams) {
  // Its answers take seconds to compute, and most suites ask for the same.
  static std::map<std::pair<int, size_t>, Workload> made;
  if (const auto found = made.find({max_tokens, streams}); found != made.end()) return found->second;
  const auto embedded = MustLoad(DemoDirectory());
  if (!embedded) return Internal("no embedded model");
  Workload workload;
  const std::vector<Verse> verses = SampleVerses(streams * 8, kSeed);
  for (size_t i = 0; i < streams; ++i) {
    // Every fourth prompt is eight verses: some chunks of prefill and many frames of KV.
    std::string text;
    for (size_t v = 0; v < (i % 4 == 3 ? 8u : 1u); ++v) text += verses[i * 8 + v].text + " ";
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, embedded->tokenizer()->Encode(text, false));
    const float temperature = i % 2 ? 1.f : 0.f;
    workload.requests.push_back(
        IdsRequest(ids, max_tokens - static_cast<int>(i), temperature, 100 + static_cast<uint64_t>(i)));
    workload.requests.back().timeout_ms = 40'000 * kSlowdown;
    workload.answers.push_back(EmbeddedTokens(*embedded, workload.requests.back()));
  }
  made[{max_tokens, streams}] = workload;
  return workload;
}

void PrintSilence(const StreamsResult& result, const char* run) {
  const ::testing::TestInfo& test = *::testing::UnitTest::GetInstance()->current_test_info();
  std::printf("  silence case=%s.%s run=%s longest_ms=%.0f all_ms=%.0f\n", test.test_suite_name(),
              test.name(), run, 1e3 * Seconds(result.longest_silence), 1e3 * Seconds(result.total));
}

Streams::Streams(const std::string& router, const Workload& workload)
    : running_(workload.requests.size()),
      outputs_(workload.requests.size()),
      silences_(workload.requests.size()) {
  for (size_t i = 0; i < workload.requests.size(); ++i)
    threads_.emplace_back([this, i, router, request = workload.requests[i]] { RunOne(i, router, request); });
}

Streams::~Streams() {
  for (auto& thread : threads_)
    if (thread.joinable()) thread.join();
}

void Streams::RunOne(size_t i, const std::string& router, const client::GenerateRequest& request) {
  client::Client client(router);
  Output& output = outputs_[i];
  TimePoint last = std::chrono::steady_clock::now();
  const auto heard = [&] {
    const TimePoint now = std::chrono::steady_clock::now();
    silences_[i] = std::max(silences_[i], now - last);
    last = now;
  };
  auto stream = client.Generate(request);
  {
    const std::lock_guard lock(mutex_);
    running_[i] = stream.get();
    if (leaving_) stream->Cancel();
  }
  client::Event event;
  while (stream->Next(&event)) {
    heard();
    output.ids.insert(output.ids.end(), event.token_ids.begin(), event.token_ids.end());
    output.finish_reason = event.finish_reason;
    {
      const std::lock_guard lock(mutex_);
      tokens_ += event.token_ids.size();
    }
    more_.notify_all();
  }
  output.status = stream->Finish();
  heard();
  const std::lock_guard lock(mutex_);
  running_[i] = nullptr;
}

bool Streams::WaitTokens(size_t tokens) {
  std::unique_lock lock(mutex_);
  const bool there = more_.wait_for(lock, kStrikes, [&] { return tokens_ >= tokens; });
  EXPECT_TRUE(there) << "the streams did not come so far: the test shows nothing";
  return there;
}

void Streams::Leave() {
  const std::lock_guard lock(mutex_);
  leaving_ = true;
  for (client::TokenStream* stream : running_)
    if (stream) stream->Cancel();
}

StreamsResult Streams::Join() {
  for (auto& thread : threads_) thread.join();
  StreamsResult result;
  result.outputs = std::move(outputs_);
  result.longest_silence = *std::max_element(silences_.begin(), silences_.end());
  result.total = std::chrono::steady_clock::now() - begin_;
  return result;
}

StreamsResult RunWith(const std::string& router, const Workload& workload, size_t tokens,
                      const std::function<void()>& strike) {
  Streams streams(router, workload);
  if (streams.WaitTokens(tokens)) strike();
  return streams.Join();
}

}  // namespace cachalot::testing

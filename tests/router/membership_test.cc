// Members that come and go by DNS while requests run: a fake resolver, scripted workers, the real request flow.

#include "router/membership.h"

#include <gmock/gmock.h>

#include <map>
#include <random>
#include <set>

#include "router/request_flow.h"
#include "tests/support/patience.h"

namespace cachalot::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
using Kind = FlowEvent::Kind;
using Addresses = StatusOr<std::vector<std::string>>;

constexpr int kMaxTokens = 40;

int32_t TokenAt(int64_t index) { return static_cast<int32_t>(1000 + index); }

class FakeResolver final : public Resolver {
 public:
  void Resolve(const std::string& name, Done done) override {
    ++asked[name];
    const auto at = answers.find(name);
    done(at == answers.end() ? NotFound(name + ": unknown") : at->second);
  }
  std::map<std::string, Addresses> answers;
  std::map<std::string, int> asked;
};

struct OpenLease {
  std::shared_ptr<FlowQueue> queue;
  int64_t next = 0;  // index of the next token of the decode worker
  bool open = true;
};

/// One life of a worker, which the test keeps longer than the pool does.
struct Node {
  std::string address;
  Status health;     // as requests see it
  Status connection;
  int begun = 0;  // requests, or prefills
  std::vector<std::shared_ptr<OpenLease>> leases;
  bool stopped = false, left = false, destroyed = false, rejoins = true;
};

class NodeClient : public MemberClient {
 public:
  NodeClient(rpc::Loop* loop, std::shared_ptr<Node> node) : node_(std::move(node)), stop_(loop) {}
  ~NodeClient() override { node_->destroyed = true; }
  rpc::Task<void> Run() override { co_await stop_.WaitUntil(TimePoint::max()); }
  void Stop() override {
    node_->stopped = true;
    stop_.Set();
  }
  Status connection() const override { return node_->connection; }
  void Leave() override { node_->left = true; }
  bool Rejoin() override {
    if (node_->rejoins) node_->left = false;
    return node_->rejoins;
  }

 protected:
  std::shared_ptr<Node> node_;
  rpc::Event stop_;
};

class LeaseCall final : public DecodeCall {
 public:
  explicit LeaseCall(std::shared_ptr<OpenLease> lease) : lease_(std::move(lease)) {}
  ~LeaseCall() override { lease_->open = false; }
  void Acknowledge(int64_t) override {}

 private:
  std::shared_ptr<OpenLease> lease_;
};

class NodeDecode final : public DecodeWorker, public NodeClient {
 public:
  using NodeClient::NodeClient;
  const std::string& name() const override { return node_->address; }
  Status health() const override { return node_->health; }
  WorkerLoad load() const override { return {0, 0, 1 << 20}; }
  std::unique_ptr<DecodeCall> Open(const SequenceState& state, std::shared_ptr<FlowQueue> queue) override {
    ++node_->begun;
    auto lease = std::make_shared<OpenLease>();
    lease->queue = std::move(queue);
    lease->next = static_cast<int64_t>(state.emitted.size()) + 1;
    FlowEvent granted;
    granted.kind = Kind::kGranted;
    lease->queue->Push(std::move(granted));
    node_->leases.push_back(lease);
    return std::make_unique<LeaseCall>(std::move(lease));
  }
};

class NodePrefill final : public PrefillWorker, public NodeClient {
 public:
  using NodeClient::NodeClient;
  const std::string& name() const override { return node_->address; }
  Status health() const override { return node_->health; }
  WorkerLoad load() const override { return {0, 0, 1 << 20}; }
  std::unique_ptr<PrefillCall> Start(const SequenceState& state, DecodeCall&, PrefillOptions options,
                                     std::shared_ptr<FlowQueue> queue) override {
    ++node_->begun;
    FlowEvent event;
    event.attempt = options.attempt;
    event.kind = Kind::kFirstToken;
    event.index = static_cast<int64_t>(state.emitted.size());
    event.token = TokenAt(event.index);
    queue->Push(event);
    event.kind = Kind::kCommitted;
    queue->Push(std::move(event));
    return std::make_unique<PrefillCall>();
  }
};

class Sink final : public FlowSink {
 public:
  rpc::Task<bool> Started() override { co_return true; }
  rpc::Task<bool> Tokens(std::vector<int32_t> more) override {
    tokens.insert(tokens.end(), more.begin(), more.end());
    co_return true;
  }
  rpc::Task<bool> Logits(int64_t, std::vector<float>) override { co_return true; }
  std::vector<int32_t> tokens;
};

struct Request {
  Sink sink;
  rpc::CancelScope cancel;
  std::optional<StatusOr<FlowResult>> result;
};

class MembershipTest : public ::testing::Test {
 protected:
  MembershipTest() {
    context_.loop = &loop_;
    context_.decode = &decode_pool_;
    context_.prefill = &prefill_pool_;
    SetNames({"d1"}, {"p1"});
  }
  ~MembershipTest() override {
    for (auto& nodes : {&decodes_, &prefills_})
      for (auto& node : *nodes)
        for (auto& lease : node->leases) Fail(*lease);
    loop_.Shutdown(Duration::zero());
    while (loop_.PollOnce(TimePoint::max()) != rpc::Loop::Poll::kStopped) {
    }
  }

  void SetNames(std::vector<std::string> decode, std::vector<std::string> prefill) {
    resolver_.answers["decode"] = std::move(decode);
    resolver_.answers["prefill"] = std::move(prefill);
  }

  void Start(const std::vector<std::string>& decode = {"dns:decode:1"},
             MembershipOptions options = {{std::chrono::milliseconds(1), {}}, std::chrono::milliseconds(1)}) {
    decode_.emplace(
        &loop_, "decode", *ParseSeeds(decode), &resolver_, &decode_pool_,
        [this](const std::string& address) { return MakeNode<NodeDecode, DecodeWorker>(decodes_, address); }, options);
    prefill_.emplace(
        &loop_, "prefill", *ParseSeeds({"dns:prefill:1"}), &resolver_, &prefill_pool_,
        [this](const std::string& address) { return MakeNode<NodePrefill, PrefillWorker>(prefills_, address); },
        options);
    ASSERT_TRUE(loop_.Spawn(decode_->Run(), "decode members"));
    ASSERT_TRUE(loop_.Spawn(prefill_->Run(), "prefill members"));
  }

  template <typename Fake, typename Worker>
  typename Membership<Worker>::Made MakeNode(std::vector<std::shared_ptr<Node>>& nodes, const std::string& address) {
    nodes.push_back(std::make_shared<Node>());
    nodes.back()->address = address;
    auto worker = std::make_unique<Fake>(&loop_, nodes.back());
    MemberClient* const client = worker.get();
    return {std::move(worker), client};
  }

  bool PollUntil(const std::function<bool()>& done) {
    const TimePoint end = loop_.Now() + kPatience;
    while (!done() && loop_.Now() < end) loop_.PollOnce(loop_.Now() + std::chrono::milliseconds(1));
    return done();
  }
  /// The latest life of an address.
  Node& At(const std::vector<std::shared_ptr<Node>>& nodes, const std::string& address) {
    for (auto at = nodes.rbegin(); at != nodes.rend(); ++at)
      if ((*at)->address == address) return **at;
    ADD_FAILURE() << address << " never was a member";
    static Node none;
    return none;
  }
  Node& D(const std::string& address) { return At(decodes_, address); }
  bool Settled(const std::set<std::string>& decode) {
    return PollUntil([&] {
      const auto names = decode_pool_.UsableNames();
      return std::set<std::string>(names.begin(), names.end()) == decode;
    });
  }

  static rpc::Task<void> Keep(MembershipTest* test, Request* request) {
    SequenceState state;
    state.request_id = "r";
    state.prompt = {1, 2, 3};
    state.params.max_tokens = kMaxTokens;
    StatusOr<FlowResult> result = co_await RunRequest(&test->context_, std::move(state), &request->sink, {},
                                                      &request->cancel, TimePoint::max());
    request->result.emplace(std::move(result));
  }
  Request& Ask() {
    requests_.push_back(std::make_unique<Request>());
    EXPECT_TRUE(loop_.Spawn(Keep(this, requests_.back().get()), "request"));
    return *requests_.back();
  }
  bool Running(const Request& request) {
    return PollUntil([&] { return !request.sink.tokens.empty(); });
  }
  /// One step of every decode worker.
  void Step() {
    for (auto& node : decodes_)
      for (auto& lease : node->leases) {
        if (!lease->open || !node->connection.ok()) continue;
        FlowEvent event;
        event.kind = Kind::kToken;
        event.index = lease->next++;
        event.token = TokenAt(event.index);
        event.finish = event.index + 1 == kMaxTokens ? FinishReason::kLength : FinishReason::kNone;
        lease->queue->Push(std::move(event));
      }
    while (loop_.PollOnce(TimePoint::min()) == rpc::Loop::Poll::kProgress) {
    }
  }
  static void Fail(OpenLease& lease) {
    if (!lease.open) return;
    FlowEvent event;
    event.kind = Kind::kDecodeFailed;
    event.error = Unavailable("it died");
    lease.queue->Push(std::move(event));
  }
  void Die(Node& node) {
    node.health = node.connection = Unavailable("it died");
    for (auto& lease : node.leases) Fail(*lease);
  }
  bool AllEnd() {
    return PollUntil([&] {
      Step();
      return std::all_of(requests_.begin(), requests_.end(), [](const auto& r) { return r->result.has_value(); });
    });
  }
  void ExpectWhole() {
    std::vector<int32_t> expected;
    for (int i = 0; i < kMaxTokens; ++i) expected.push_back(TokenAt(i));
    for (const auto& request : requests_) {
      ASSERT_TRUE(request->result.has_value());
      EXPECT_TRUE(request->result->ok()) << request->result->status();
      EXPECT_EQ(request->sink.tokens, expected);
    }
  }

  FakeResolver resolver_;
  WorkerPool<DecodeWorker> decode_pool_;
  WorkerPool<PrefillWorker> prefill_pool_;
  std::vector<std::shared_ptr<Node>> decodes_, prefills_;  // all that ever were
  rpc::Loop loop_{{.name = "members"}};
  FlowContext context_;
  std::optional<Membership<DecodeWorker>> decode_;
  std::optional<Membership<PrefillWorker>> prefill_;
  std::vector<std::unique_ptr<Request>> requests_;
};

TEST_F(MembershipTest, EveryAddressOfANameIsAMember) {
  SetNames({"d1", "d2", "fd00::7"}, {"p1"});
  Start({"static:9", "dns:decode:7300"});
  EXPECT_TRUE(Settled({"static:9", "d1:7300", "d2:7300", "[fd00::7]:7300"}));
  EXPECT_EQ(decode_->Trouble(), "");
}

TEST_F(MembershipTest, NewOnesGetWorkLeavingOnesKeepTheirsAndGoWhenIdle) {
  Start();
  ASSERT_TRUE(Settled({"d1:1"}));
  Request& first = Ask();
  ASSERT_TRUE(Running(first));
  SetNames({"d2"}, {"p1"});
  ASSERT_TRUE(Settled({"d2:1"}));
  EXPECT_TRUE(D("d1:1").left) << "it does not bind the cluster any more";
  Request& second = Ask();
  ASSERT_TRUE(Running(second));
  EXPECT_EQ(D("d1:1").begun, 1);
  EXPECT_EQ(D("d2:1").begun, 1);
  EXPECT_FALSE(D("d1:1").stopped) << "its request runs";
  EXPECT_THAT(StatusMessage(decode_pool_.Usable(0)), HasSubstr("DNS does not name it any more"));
  ASSERT_TRUE(AllEnd());
  ExpectWhole();
  EXPECT_TRUE(PollUntil([&] { return D("d1:1").destroyed; }));
  EXPECT_EQ(decode_pool_.size(), 1u);
}

TEST_F(MembershipTest, OneThatDrainsAndLeavesKeepsWhatRuns) {
  Start();
  ASSERT_TRUE(Settled({"d1:1"}));
  Request& first = Ask();
  ASSERT_TRUE(Running(first));
  D("d1:1").health = Unavailable("draining: this decode worker takes no new requests");
  SetNames({"d2"}, {"p1"});
  ASSERT_TRUE(Settled({"d2:1"}));
  EXPECT_TRUE(D("d1:1").left);
  EXPECT_FALSE(D("d1:1").stopped) << "its request runs";
  ASSERT_TRUE(AllEnd());
  ExpectWhole();
  EXPECT_EQ(D("d2:1").begun, 0) << "nothing went on elsewhere";
  EXPECT_TRUE(PollUntil([&] { return D("d1:1").destroyed; }));
}

TEST_F(MembershipTest, OneThatComesBackWhileItDrainsIsTheSame) {
  Start();
  ASSERT_TRUE(Settled({"d1:1"}));
  ASSERT_TRUE(Running(Ask()));
  SetNames({"d2"}, {"p1"});
  ASSERT_TRUE(Settled({"d2:1"}));
  SetNames({"d1", "d2"}, {"p1"});
  ASSERT_TRUE(Settled({"d1:1", "d2:1"}));
  EXPECT_FALSE(D("d1:1").left);
  EXPECT_EQ(decodes_.size(), 2u) << "no second client of d1";
  ASSERT_TRUE(AllEnd());
  ExpectWhole();
}

TEST_F(MembershipTest, OneThatMayNotComeBackEndsAndComesAnew) {
  Start();
  ASSERT_TRUE(Settled({"d1:1"}));
  ASSERT_TRUE(Running(Ask()));
  SetNames({"d2"}, {"p1"});
  ASSERT_TRUE(Settled({"d2:1"}));
  D("d1:1").rejoins = false;  // the cluster has another Compat now
  SetNames({"d1", "d2"}, {"p1"});
  ASSERT_TRUE(AllEnd());
  ExpectWhole();
  ASSERT_TRUE(Settled({"d1:1", "d2:1"}));
  EXPECT_EQ(decodes_.size(), 3u);
  EXPECT_TRUE(decodes_[0]->destroyed);
}

TEST_F(MembershipTest, AFailedOrEmptyAnswerRemovesNobody) {
  Start();
  ASSERT_TRUE(Settled({"d1:1"}));
  for (const Addresses& none : {Addresses(Unavailable("decode: no server")), Addresses(std::vector<std::string>())}) {
    resolver_.answers["decode"] = none;
    const int before = resolver_.asked["decode"];
    ASSERT_TRUE(PollUntil([&] { return resolver_.asked["decode"] > before + 3; }));
    EXPECT_THAT(decode_pool_.UsableNames(), ElementsAre("d1:1"));
    EXPECT_THAT(decode_->Trouble(), HasSubstr("dns:decode:1: "));
  }
  SetNames({"d2"}, {"p1"});
  EXPECT_TRUE(Settled({"d2:1"}));
  EXPECT_EQ(decode_->Trouble(), "");
}

TEST_F(MembershipTest, ANameWithoutAnswerLeavesThatOfOthersAlone) {
  Start({"dns:decode:1", "dns:unknown:1"});
  ASSERT_TRUE(Settled({"d1:1"}));
  SetNames({"d2"}, {"p1"});
  ASSERT_TRUE(Settled({"d2:1"}));
  EXPECT_THAT(decode_->Trouble(), HasSubstr("dns:unknown:1: unknown: unknown"));
}

TEST_F(MembershipTest, ALostMemberIsAReasonToAskAtOnce) {
  // An interval that the test would not live to see.
  Start({"dns:decode:1"}, {{std::chrono::hours(1), {}}, std::chrono::milliseconds(1)});
  ASSERT_TRUE(Settled({"d1:1"}));
  const Request& request = Ask();
  ASSERT_TRUE(Running(request));
  const int before = resolver_.asked["decode"];
  SetNames({"d2"}, {"p1"});
  Die(D("d1:1"));
  ASSERT_TRUE(Settled({"d2:1"}));
  EXPECT_EQ(resolver_.asked["decode"], before + 1);
  ASSERT_TRUE(AllEnd());
  ExpectWhole();
  EXPECT_TRUE(PollUntil([&] { return D("d1:1").destroyed; })) << "dead: nothing to wait for";
}

TEST_F(MembershipTest, RequestsOfAnotherModelEnd) {
  SetNames({"d1", "d2"}, {"p1"});
  Start();
  ASSERT_TRUE(Settled({"d1:1", "d2:1"}));
  const Request& request = Ask();
  ASSERT_TRUE(Running(request));
  ++context_.generation;  // as ClusterView's
  Step();
  EXPECT_FALSE(request.result.has_value()) << "where it runs it goes on";
  for (auto& node : decodes_) Die(*node);
  for (auto& node : decodes_) node->health = OkStatus();
  ASSERT_TRUE(PollUntil([&] { return request.result.has_value(); }));
  EXPECT_EQ(request.result->status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(request.result->status()),
              HasSubstr("the workers have changed to another model since the request began: send it again"));
}

TEST_F(MembershipTest, NamesThatChangeUnderLoad) {
  constexpr uint32_t kSeed = 71;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937 rng(kSeed);
  SetNames({"d0", "d1", "d2"}, {"p0", "p1"});
  Start();
  ASSERT_TRUE(Settled({"d0:1", "d1:1", "d2:1"}));
  for (int i = 0; i < 16; ++i) ASSERT_TRUE(Running(Ask()));
  int fresh = 3;
  std::vector<std::string> names = {"d0", "d1", "d2"};
  for (int round = 0; round < 12; ++round) {
    // One leaves, a new one comes; a prefill worker too.
    names.erase(names.begin() + static_cast<ptrdiff_t>(rng() % names.size()));
    const std::string added = "d" + std::to_string(fresh++);
    names.push_back(added);
    SetNames(names, {"p" + std::to_string(fresh), "p0"});
    std::set<std::string> expected;
    for (const std::string& name : names) expected.insert(name + ":1");
    ASSERT_TRUE(Settled(expected));
    std::map<Node*, int> begun;
    for (auto& node : decodes_) begun[node.get()] = node->begun;
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(Running(Ask()));
      Step();
    }
    EXPECT_GT(D(added + ":1").begun, 0) << "the new one had the least work";
    for (auto& node : decodes_) {
      if (!expected.contains(node->address)) {
        EXPECT_EQ(node->begun, begun[node.get()]) << node->address << " has left and got work";
      }
      for (auto& lease : node->leases)
        EXPECT_FALSE(lease->open && (node->destroyed || node->stopped)) << node->address;
    }
  }
  ASSERT_TRUE(AllEnd());
  ExpectWhole();
  EXPECT_EQ(context_.counters.decode_failovers, 0) << "none had to move";
  EXPECT_EQ(context_.counters.prefill_retries, 0);
  EXPECT_TRUE(PollUntil([&] { return decode_pool_.size() == 3 && prefill_pool_.size() == 2; }));
}

}  // namespace
}  // namespace cachalot::testing

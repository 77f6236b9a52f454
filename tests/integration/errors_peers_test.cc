// Peers that do not belong together, row by row as in docs/errors.md: the exit code and what the message names.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include <csignal>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "tests/integration/cluster_fixture.h"
#include "tests/support/broken_checkpoint.h"
#include "tests/support/patience.h"
#include "tests/support/programs.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr Duration kSettled = std::chrono::seconds(15) * kSlowdown;

/// Says of itself what it is told to.
class FakePeer final : public v1::Cluster::Service {
 public:
  explicit FakePeer(v1::Description description) : description_(std::move(description)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakePeer() override { server_->Shutdown(std::chrono::system_clock::now()); }
  grpc::Status Describe(grpc::ServerContext*, const v1::DescribeRequest*, v1::Description* out) override {
    *out = description_;
    return grpc::Status::OK;
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  const v1::Description description_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

/// A worker that serves until the end of the test.
struct Server {
  explicit Server(const Words& argv) : process(programs.Start(argv)) {
    const auto ready = process->WaitReady(std::chrono::steady_clock::now() + kSettled);
    EXPECT_TRUE(ready.ok()) << ready.status() << ReadText(programs.log());
    address = ready.value_or("");
  }
  Programs programs;
  std::unique_ptr<ChildProcess> process;
  std::string address;
};

Words Expert(const std::string& model, const std::string& shard) {
  return Worker("cachalot-expert", model, {"--shard", shard});
}

TEST(Peer, AWorkerRefusesExpertsThatDifferAndNamesTheField) {
  const std::string tiny = TinyCheckpoint();
  const Server expert(Expert(tiny, "0/1"));
  const auto described = ProcessCluster::Describe(expert.address);
  ASSERT_TRUE(described.ok()) << described.status();
  const struct {
    const char* field;
    std::function<void(v1::Compat&)> change;
  } cases[] = {{"weights", [](auto& c) { c.set_weights("other"); }},
               {"protocol", [](auto& c) { c.set_protocol(c.protocol() + 2); }},
               {"state_format", [](auto& c) { c.set_state_format(c.state_format() + 1); }},
               {"mode", [](auto& c) { c.set_mode("other"); }},
               {"kv_layout", [](auto& c) { c.set_kv_layout("other"); }},
               {"reduction_groups", [](auto& c) { c.set_reduction_groups(16); }},
               {"numerics", [](auto& c) { c.set_numerics("other"); }}};
  for (const auto& wrong : cases) {
    v1::Description description = *described;
    wrong.change(*description.mutable_compat());
    const FakePeer peer(description);
    for (const char* worker : {"cachalot-prefill", "cachalot-decode"}) {
      SCOPED_TRACE(std::string(worker) + " " + wrong.field);
      ExpectFails(Worker(worker, tiny, {"--experts", peer.address()}), kFailed,
                  {"expert service " + peer.address() + " is not compatible: " + wrong.field + " is ",
                   "run all roles with the same checkpoint, mode and back end"});
    }
  }
  v1::Description description = *described;
  description.set_role(v1::ROLE_DECODE);
  const FakePeer peer(description);
  ExpectFails(Worker("cachalot-prefill", tiny, {"--experts", peer.address()}), kFailed,
              {peer.address() + " is no expert service but ROLE_DECODE"});
}

TEST(Peer, RealOnesOfOtherWeightsOrModeAreRefused) {
  const std::string tiny = TinyCheckpoint();
  BrokenCheckpoint other;
  other.Tensors([](auto& t) { t.at("head.weight").bytes[0] ^= 1; });
  const Server weights(Expert(other.path(), "0/1"));
  ExpectFails(Worker("cachalot-decode", tiny, {"--experts", weights.address}), kFailed,
              {"not compatible: weights"});
  Words bf16 = Expert(tiny, "0/1");
  bf16.insert(bf16.end(), {"--mode", "bf16"});
  const Server mode(bf16);
  ExpectFails(Worker("cachalot-decode", tiny, {"--experts", mode.address}), kFailed,
              {"not compatible: mode is \"bf16\" there, \"exact\" here"});
}

TEST(Peer, ExpertsThatTakeFewerRowsThanAStepHasAreRefusedWithBothFlags) {
  const std::string tiny = TinyCheckpoint();
  Words argv = Expert(tiny, "0/1");
  argv.insert(argv.end(), {"--max-call-rows", "32"});
  const Server expert(argv);
  for (const auto& [worker, step] : {std::pair("cachalot-decode", "64 (--max-batch)"),
                                     std::pair("cachalot-prefill", "256 (--max-chunk-tokens)")})
    ExpectFails(Worker(worker, tiny, {"--experts", expert.address}), kFailed,
                {"expert service " + expert.address + " takes at most 32 rows in a call (its --max-call-rows)",
                 std::string("a step here may have ") + step + ": raise the one or lower the other"});
}

TEST(Peer, ExpertsWhoseFramesWouldBeTooLongAreRefusedWithTheFlag) {
  const std::string tiny = TinyCheckpoint();
  Words argv = Expert(tiny, "0/1");
  argv.insert(argv.end(), {"--max-call-rows", "300000"});
  const Server expert(argv);
  ExpectFails(
      Worker("cachalot-prefill", tiny, {"--experts", expert.address, "--max-chunk-tokens", "300000"}), kFailed,
      {"expert service " + expert.address + ": a step here may have 300000 rows (--max-chunk-tokens), whose reply",
       " bytes; a frame has at most 268435456, enough for ", " rows: lower --max-chunk-tokens"});
}

TEST(Peer, ARouterUsesNoWorkersThatDiffer) {
  BrokenCheckpoint other;
  other.Tensors([](auto& t) { t.at("head.weight").bytes[0] ^= 1; });
  const Server decode(Worker("cachalot-decode", TinyCheckpoint(), {"--experts", "local"}));
  const Server prefill(Worker("cachalot-prefill", other.path(), {"--experts", "local"}));
  Programs programs;
  const auto router = programs.Start({"cachalot-router", "--listen", "127.0.0.1:0", "--prefill",
                                      prefill.address, "--decode", decode.address, "--die-with-parent"});
  ASSERT_TRUE(router);
  EXPECT_TRUE(programs.WaitLogged(*router, " is not compatible: weights is "));
  EXPECT_TRUE(router->Running()) << "the right worker may still come";
  router->Signal(SIGTERM);
  const Ended ended = programs.End(*router);
  EXPECT_EQ(ended.exit.code, 0);
  EXPECT_THAT(ended.out, Not(HasSubstr("ready")));
}

TEST(Peer, ARouterRefusesFilesOfAnotherModel) {
  const std::string tiny = TinyCheckpoint();
  const Server decode(Worker("cachalot-decode", tiny, {"--experts", "local"}));
  const Server prefill(Worker("cachalot-prefill", tiny, {"--experts", "local"}));
  const Words router = {"cachalot-router", "--listen", "127.0.0.1:0", "--prefill", prefill.address, "--decode",
                        decode.address, "--die-with-parent", "--model"};
  Words wrong = router, right = router;
  wrong.push_back(DemoDirectory());
  right.push_back(tiny);
  ExpectFails(wrong, kFailed, {"/config.json is not the config.json of the workers' model", "--model, or none"});
  const Server ready(right);
}

TEST(Peer, ARouterNamesBothRolesOfAWrongAddress) {
  const Server decode(Worker("cachalot-decode", TinyCheckpoint(), {"--experts", "local"}));
  Programs programs;
  const auto router = programs.Start({"cachalot-router", "--listen", "127.0.0.1:0", "--prefill", decode.address,
                                      "--decode", decode.address, "--die-with-parent"});
  ASSERT_TRUE(router);
  EXPECT_TRUE(programs.WaitLogged(*router, "wanted a prefill worker, it is a decode worker"));
  EXPECT_TRUE(router->Running());
  router->Signal(SIGTERM);
  EXPECT_EQ(programs.End(*router).exit.code, 0);
}

TEST(Peer, ARouterSaysWhichNameLeadsNowhere) {
  Programs programs;
  const auto router = programs.Start({"cachalot-router", "--listen", "127.0.0.1:0", "--prefill", "127.0.0.1:1",
                                      "--decode", "dns:decode.test:1", "--dns-server", "127.0.0.1:1",
                                      "--die-with-parent"});
  ASSERT_TRUE(router);
  EXPECT_TRUE(programs.WaitLogged(*router, "decode workers at dns:decode.test:1: decode.test: DNS: "));
  EXPECT_TRUE(programs.WaitLogged(*router, "waiting for workers: decode: no worker is configured; dns:decode.test:1"));
  router->Signal(SIGTERM);
  EXPECT_EQ(programs.End(*router).exit.code, 0);
}

TEST(Shards, ThatDoNotCoverTheExpertsOnceAreRefused) {
  const std::string tiny = TinyCheckpoint();
  const Server first(Expert(tiny, "0/2")), again(Expert(tiny, "0/2")), quarter(Expert(tiny, "3/4"));
  const struct {
    std::string experts;
    Words says;
  } cases[] = {
      {first.address, {"no expert service for shard 1 of 2; 1 given"}},
      {first.address + "," + first.address,
       {"expert service " + first.address + " is given twice"}},
      {first.address + "," + again.address, {"two expert services for one shard", again.address}},
      {first.address + "," + quarter.address,
       {"expert services of different layouts", "shard 3/4"}}};
  for (const auto& wrong : cases) {
    SCOPED_TRACE(wrong.says[0]);
    for (const char* worker : {"cachalot-prefill", "cachalot-decode"})
      ExpectFails(Worker(worker, tiny, {"--experts", wrong.experts}), kFailed, wrong.says);
  }
}

}  // namespace
}  // namespace cachalot::testing

// The binary: it serves when it says so, and a SIGTERM ends it well.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "common/process/child_process.h"
#include "common/process/role_main.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"

namespace cachalot {
namespace {

TimePoint Soon() { return std::chrono::steady_clock::now() + std::chrono::seconds(30); }

StatusOr<std::unique_ptr<ChildProcess>> Spawn(std::vector<std::string> flags) {
  std::vector<std::string> argv = {CACHALOT_BINARY_DIR "/cachalot-prefill", "--die-with-parent", "--model",
                                   CACHALOT_SOURCE_DIR "/tests/golden/oracle/tiny"};
  argv.insert(argv.end(), flags.begin(), flags.end());
  return ChildProcess::Spawn({.argv = argv});
}

int ExitCodeOf(std::vector<std::string> flags) {
  const auto child = Spawn(std::move(flags));
  if (!child.ok()) return -1;
  const auto exit = (*child)->Wait(Soon());
  return exit.ok() ? exit->code : -1;
}

TEST(PrefillProcess, ServesUntilItIsStopped) {
  const auto child = Spawn({"--experts", "local", "--metrics-listen", "127.0.0.1:0"});
  ASSERT_TRUE(child.ok()) << child.status();
  const auto address = (*child)->WaitReady(Soon());
  ASSERT_TRUE(address.ok()) << address.status();
  const auto channel = grpc::CreateChannel(*address, grpc::InsecureChannelCredentials());

  grpc::ClientContext describe, health, assets;
  v1::Description description;
  ASSERT_TRUE(v1::Cluster::NewStub(channel)->Describe(&describe, {}, &description).ok());
  EXPECT_EQ(description.role(), v1::ROLE_PREFILL);
  EXPECT_EQ(description.compat().mode(), "exact");
  EXPECT_EQ(description.load().used_kv_blocks(), 0);

  grpc::health::v1::HealthCheckRequest readiness;
  grpc::health::v1::HealthCheckResponse answer;
  readiness.set_service("readiness");
  ASSERT_TRUE(grpc::health::v1::Health::NewStub(channel)->Check(&health, readiness, &answer).ok());
  EXPECT_EQ(answer.status(), grpc::health::v1::HealthCheckResponse::SERVING);

  v1::GetModelAssetsResponse model;
  ASSERT_TRUE(v1::ModelAssets::NewStub(channel)->GetModelAssets(&assets, {}, &model).ok());
  EXPECT_EQ(model.model(), "tiny");

  (*child)->Signal(SIGTERM);
  const auto exit = (*child)->Wait(Soon());
  ASSERT_TRUE(exit.ok()) << exit.status();
  EXPECT_EQ(exit->code, kExitOk);
  EXPECT_EQ(exit->signal, 0);
}

TEST(PrefillProcess, RefusesWrongFlags) {
  EXPECT_EQ(ExitCodeOf({"--experts", "local", "--mode", "official"}), kExitUsage);
  EXPECT_EQ(ExitCodeOf({}), kExitUsage);  // no --experts
  EXPECT_EQ(ExitCodeOf({"--experts", "local", "--listen", "nonsense"}), kExitUsage);
}

TEST(PrefillProcess, EndsWhenItsExpertsCannotBeThere) {
  EXPECT_EQ(ExitCodeOf({"--experts", "127.0.0.1:1,127.0.0.1:1"}), kExitFailed);
}

}  // namespace
}  // namespace cachalot

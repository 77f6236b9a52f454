// Rows of docs/errors.md about peers that come late or that DNS does not know, and about bytes that are no message.

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <list>
#include <map>

#include "cachalot/v1/generation.grpc.pb.h"
#include "tests/integration/cluster_fixture.h"
#include "tests/support/broken_checkpoint.h"
#include "tests/support/dns_server.h"
#include "tests/support/own_address.h"
#include "tests/support/patience.h"
#include "tests/support/programs.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;

/// Processes that serve until the end of the test.
class Serving {
 public:
  std::string operator()(const Words& argv) {
    Programs& programs = programs_.emplace_back();
    auto& process = processes_.emplace_back(programs.Start(argv));
    const auto ready = process->WaitReady(std::chrono::steady_clock::now() + kPatience);
    EXPECT_TRUE(ready.ok()) << ready.status() << ReadText(programs.log());
    return ready.value_or("");
  }

 private:
  std::list<Programs> programs_;
  std::list<std::unique_ptr<ChildProcess>> processes_;
};

Words Local(const std::string& binary, const std::string& model) {
  return Worker(binary, model, {"--experts", "local"});
}

Words At(const std::string& address, Words argv) {
  std::replace(argv.begin(), argv.end(), std::string("127.0.0.1:0"), address);
  return argv;
}

TEST(LatePeer, ARouterTakesTheRightWorkerWhenItComes) {
  BrokenCheckpoint other;
  other.Tensors([](auto& t) { t.at("head.weight").bytes[0] ^= 1; });
  Serving serve;
  const std::string decode = serve(Local("cachalot-decode", TinyCheckpoint()));
  const std::string wrong = OwnAddress(1);
  const std::string right = OwnAddress(2);
  Programs programs;
  const auto router = programs.Start({"cachalot-router", "--listen", "127.0.0.1:0", "--prefill", wrong + "," + right,
                                      "--decode", decode, "--die-with-parent"});
  ASSERT_TRUE(router);
  // The first to answer says what fits: the decode worker.
  ASSERT_TRUE(programs.WaitLogged(*router, "waiting for workers: prefill: ")) << ReadText(programs.log());
  serve(At(wrong, Local("cachalot-prefill", other.path())));
  ASSERT_TRUE(programs.WaitLogged(*router, "prefill worker " + wrong + " is not compatible: weights is "))
      << ReadText(programs.log());
  serve(At(right, Local("cachalot-prefill", TinyCheckpoint())));
  const auto ready = router->WaitReady(std::chrono::steady_clock::now() + kPatience);
  ASSERT_TRUE(ready.ok()) << ready.status() << ReadText(programs.log());
  client::Client client(*ready);
  const Output output = Ask(client, IdsRequest({5, 6}, 4, 0.f, 1));
  EXPECT_TRUE(output.status.ok()) << output.status.message;
  EXPECT_EQ(output.ids.size(), 4u);
}

TEST(Names, OfExpertsThatDnsDoesNotKnowEndAWorker) {
  DnsServer dns;
  ExpectFails(Worker("cachalot-decode", TinyCheckpoint(),
                     {"--experts", "dns:nowhere.test:1", "--dns-server", dns.address()}),
              kFailed,
              {"after 8 s: no expert service is known; dns:nowhere.test:1: nowhere.test: DNS knows no "
               "address of it"});
}

/// Serialized GenerateRequest with `text` of these bytes, which no protobuf of C++ would write.
grpc::ByteBuffer RequestWithText(const std::string& text) {
  v1::GenerateRequest good;
  good.set_text(std::string(text.size(), 'x'));
  good.set_max_tokens(1);
  std::string bytes = good.SerializeAsString();
  bytes.replace(bytes.find(good.text()), text.size(), text);
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

TEST(RawRequest, WhatIsTooLongOrNoUtf8IsRefusedByGrpc) {
  Serving serve;
  const std::string address = serve({"cachalot", "serve", "--model", DemoDirectory(), "--listen", "127.0.0.1:0"});
  grpc::GenericStub stub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  const std::string too_long(16 << 20, 'x');
  const std::map<std::string, grpc::StatusCode> cases = {{"abc", grpc::StatusCode::OK},
                                                         {"ab\xff", grpc::StatusCode::INTERNAL},
                                                         {too_long, grpc::StatusCode::RESOURCE_EXHAUSTED}};
  for (const auto& [text, code] : cases) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
    grpc::CompletionQueue queue;
    const auto call = stub.PrepareCall(&context, "/cachalot.v1.Inference/Generate", &queue);
    void* tag = nullptr;
    bool ok = false;
    const auto next = [&] { return queue.Next(&tag, &ok) && ok; };
    call->StartCall(nullptr);
    ASSERT_TRUE(next());
    call->WriteLast(RequestWithText(text), grpc::WriteOptions(), nullptr);
    (void)next();
    for (bool more = true; more;) {
      grpc::ByteBuffer answer;
      call->Read(&answer, nullptr);
      more = next();
    }
    grpc::Status status;
    call->Finish(&status, nullptr);
    ASSERT_TRUE(next());
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    if (text == too_long) {
      EXPECT_THAT(status.error_message(), HasSubstr("Received message larger than max"));
    }
  }
  client::Client client(address);
  client::GenerateRequest request;
  request.text = too_long;
  request.timeout_ms = 60'000 * kSlowdown;
  const Output output = Ask(client, request);
  EXPECT_EQ(output.status.code, grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(output.status.message, HasSubstr("Sent message larger than max"));
}

}  // namespace
}  // namespace cachalot::testing

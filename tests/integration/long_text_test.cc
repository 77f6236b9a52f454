// A text that takes seconds to tokenize, beside a stream: the router's heartbeats must not wait for it.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <thread>

#include "cachalot/v1/generation.grpc.pb.h"
#include "tests/integration/cluster_fixture.h"
#include "tests/support/patience.h"
#include "tests/support/programs.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

/// Words that nobody has seen, of which a tokenizer makes the most work.
std::string Noise(size_t bytes) {
  std::string text;
  for (uint32_t x = 1; text.size() < bytes; x = x * 1664525 + 1013904223)
    text += static_cast<char>('a' + (x >> 24) % 26);
  return text;
}

std::string MustServe(Programs& programs, std::unique_ptr<ChildProcess>& process, const Words& argv) {
  process = programs.Start(argv);
  if (!process) return "";
  const auto ready = process->WaitReady(std::chrono::steady_clock::now() + kPatience);
  EXPECT_TRUE(ready.ok()) << ready.status();
  return ready.value_or("");
}

TEST(LongText, BreaksNoSessionOfItsRouter) {
  const auto embedded = MustLoad(DemoDirectory());
  ASSERT_TRUE(embedded);
  Programs decode_log, prefill_log, router_log;
  std::unique_ptr<ChildProcess> decode, prefill, router;
  const std::string address = MustServe(
      router_log, router,
      {"cachalot-router", "--listen", "127.0.0.1:0", "--die-with-parent", "--decode",
       MustServe(decode_log, decode, Worker("cachalot-decode", DemoDirectory(), {"--experts", "local"})), "--prefill",
       MustServe(prefill_log, prefill, Worker("cachalot-prefill", DemoDirectory(), {"--experts", "local"}))});
  const auto request = IdsRequest({5, 6, 7}, 64, 1.f, 1);
  const std::vector<int32_t> wanted = EmbeddedTokens(*embedded, request);
  client::Client client(address);
  ASSERT_EQ(Ask(client, request).ids, wanted);

  std::atomic<bool> tokenized = false;
  std::thread streams([&] {
    client::Client another(address);
    do {
      const Output output = Ask(another, request);
      EXPECT_TRUE(output.status.ok()) << output.status.message;
      EXPECT_EQ(output.ids, wanted);
    } while (!tokenized);
  });
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  const auto stub = v1::Inference::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + 2 * kPatience);
  v1::TokenizeRequest text;
  text.set_text(Noise(15 << 20));
  v1::TokenizeResponse response;
  const grpc::Status status = stub->Tokenize(&context, text, &response);
  tokenized = true;
  streams.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_GT(response.ids_size(), 8192);
  const std::string log = ReadText(decode_log.log());
  EXPECT_THAT(log, HasSubstr("Session open"));
  EXPECT_THAT(log, Not(HasSubstr("Session over")));
}

}  // namespace
}  // namespace cachalot::testing

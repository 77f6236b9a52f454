#pragma once
// `cachalot serve` in the test's process, and what a client gets of it.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/embedded/embedded_workers.h"
#include "client/sdk/client.h"
#include "common/cluster/assets.h"
#include "router/generation_service.h"
#include "tests/support/patience.h"

namespace cachalot::testing {

inline constexpr int64_t kTimeoutMs = 30'000;

/// `cachalot serve` on a free port.
class Served {
 public:
  explicit Served(const std::string& directory, int max_sequences = 32, int64_t prefix_cache_bytes = 0) {
    auto embedded = EmbeddedModel::Load({.model = directory,
                                         .max_sequences = max_sequences,
                                         .kv_tokens = 16384,
                                         .prefix_cache = {.bytes = prefix_cache_bytes}});
    auto assets = ReadModelAssets(directory);
    EXPECT_TRUE(embedded.ok() && assets.ok()) << embedded.status() << assets.status();
    embedded_ = std::move(*embedded);
    auto made = Frontend::Make(*assets);
    EXPECT_TRUE(made.ok()) << made.status();
    frontend_ = std::move(*made);
    loop_ = server_.AddLoop({.name = "front"});
    flow_.loop = loop_;
    flow_.decode = &decode_;
    flow_.prefill = &prefill_;
    service_ = std::make_unique<GenerationService>(&server_, loop_, &flow_, &metrics_, true);
    engine_ = std::make_unique<EmbeddedEngine>(embedded_.get(), loop_, 64);
    decode_.Add(engine_->MakeDecodeWorker());
    prefill_.Add(engine_->MakePrefillWorker());
    const auto port = server_.Start();
    EXPECT_TRUE(port.ok()) << port.status();
    loop_->Start();
    client_ = std::make_unique<client::Client>("127.0.0.1:" + std::to_string(server_.port()));
  }
  ~Served() { server_.Shutdown(Duration::zero()); }

  void Open() { service_->Serve(frontend_); }
  GenerationService& service() { return *service_; }
  EmbeddedModel& embedded() { return *embedded_; }
  client::Client& client() { return *client_; }
  rpc::Server& server() { return server_; }
  double Counted(const std::string& name) { return metrics_.AddCounter(name, "").Value(); }
  const Tokenizer* tokenizer() const { return frontend_->tokenizer(); }
  bool EventuallyAllFree() {
    const TimePoint end = std::chrono::steady_clock::now() + kPatience;
    while (embedded_->pools().used_blocks() != 0) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::yield();
    }
    return true;
  }

 private:
  std::unique_ptr<EmbeddedModel> embedded_;
  std::shared_ptr<const Frontend> frontend_;
  MetricsRegistry metrics_;
  WorkerPool<DecodeWorker> decode_;
  WorkerPool<PrefillWorker> prefill_;
  FlowContext flow_;
  std::unique_ptr<GenerationService> service_;
  rpc::Server server_{{}};  // the service outlives it
  rpc::Loop* loop_ = nullptr;
  std::unique_ptr<EmbeddedEngine> engine_;
  std::unique_ptr<client::Client> client_;
};

struct Output {
  client::Status status;
  std::vector<int32_t> tokens;
  std::string text;
  std::vector<client::Event> events;
  bool operator==(const Output& other) const { return tokens == other.tokens && text == other.text; }
};

inline Output Collect(client::TokenStream& stream) {
  Output output;
  client::Event event;
  while (stream.Next(&event)) {
    output.tokens.insert(output.tokens.end(), event.token_ids.begin(), event.token_ids.end());
    output.text += event.text;
    output.events.push_back(event);
  }
  output.status = stream.Finish();
  return output;
}

inline Output Generate(client::Client& client, const client::GenerateRequest& request) {
  const auto stream = client.Generate(request);
  return Collect(*stream);
}

inline client::GenerateRequest Greedy(std::vector<int32_t> ids, int max_tokens) {
  client::GenerateRequest request;
  request.token_ids = std::move(ids);
  request.temperature = 0.f;
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.timeout_ms = kTimeoutMs;
  return request;
}

}  // namespace cachalot::testing

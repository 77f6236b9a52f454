#pragma once
// A router over real gRPC whose outputs are a function of seed and index, and which can be told to die.

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cachalot/v1/admin.grpc.pb.h"
#include "cachalot/v1/generation.grpc.pb.h"

namespace cachalot::testing {

inline constexpr int kPromptTokens = 9;

/// What the model of these tests says.
inline int32_t FakeToken(uint64_t seed, size_t index) {
  return static_cast<int32_t>((seed * 2654435761u + index * 40503u) % 50000);
}
inline std::string FakeText(int32_t token) { return "<" + std::to_string(token) + ">"; }

class FakeRouter final : public v1::Inference::Service {
 public:
  /// What happens to call `call` (from 0) after how many messages: as many as asked for, then `status`.
  struct Death {
    int messages = 1 << 30;
    grpc::Status status = {grpc::StatusCode::UNAVAILABLE, "killed by the script"};
    bool chosen = true;  // by the router, which marks it; false: as gRPC says of a link
  };

  explicit FakeRouter(uint64_t drawn_seed, std::string compat = "w")
      : drawn_seed_(drawn_seed), compat_(std::move(compat)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    builder.RegisterService(&debug_);
    server_ = builder.BuildAndStart();
  }
  ~FakeRouter() override { Stop(); }
  void Stop() {
    if (server_) server_->Shutdown(std::chrono::system_clock::now());
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  /// Set before the calls.
  std::function<Death(int call)> death = [](int) { return Death(); };
  int per_message = 2;  // tokens
  int prompt_tokens = kPromptTokens;
  /// What every call for logits is answered with.
  std::vector<v1::LogitsResponse>& logits() { return debug_.responses; }
  std::vector<v1::GenerateRequest> requests() {
    std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  using Writer = grpc::ServerWriter<v1::GenerateResponse>;
  struct Debug final : v1::Debug::Service {
    grpc::Status Logits(grpc::ServerContext*, const v1::LogitsRequest*,
                        grpc::ServerWriter<v1::LogitsResponse>* writer) override {
      for (const v1::LogitsResponse& response : responses)
        if (!writer->Write(response)) return grpc::Status::CANCELLED;
      return grpc::Status::OK;
    }
    std::vector<v1::LogitsResponse> responses;
  };

  static std::vector<v1::GenerateResponse> PromptLogprobs(int count) {
    std::vector<v1::GenerateResponse> messages;
    for (int first = 1; first < count; first += 3) {
      auto* logprobs = messages.emplace_back().mutable_prompt_logprobs();
      logprobs->set_first(first);
      for (int i = first; i < std::min(first + 3, count); ++i)
        logprobs->add_entries()->set_logprob(-static_cast<float>(i));
    }
    return messages;
  }

  /// Everything that the request's stream says.
  std::vector<v1::GenerateResponse> Script(const v1::GenerateRequest& request) const {
    std::vector<v1::GenerateResponse> messages(1);
    const uint64_t seed = request.sampling().has_seed() ? request.sampling().seed() : drawn_seed_;
    messages[0].mutable_started()->set_request_id(request.request_id().empty() ? "made" : request.request_id());
    messages[0].mutable_started()->set_seed(seed);
    messages[0].mutable_started()->set_prompt_tokens(prompt_tokens);
    messages[0].mutable_started()->set_compat(compat_);
    if (request.has_prompt_logprobs())
      for (auto& message : PromptLogprobs(prompt_tokens)) messages.push_back(std::move(message));
    const int n = request.has_n() ? request.n() : 1, length = request.max_tokens();
    // Choice i ends i tokens early: the choices do not end together.
    std::vector<int> next(n, request.resume_tokens_size());
    std::vector<bool> over(n, false);
    for (int running = n; running > 0;)
      for (int c = 0; c < n; ++c) {
        if (over[c]) continue;
        v1::GenerateResponse& message = messages.emplace_back();
        if (next[c] >= length) {
          message.mutable_finished()->set_choice(c);
          message.mutable_finished()->set_reason(v1::FINISH_REASON_LENGTH);
          message.mutable_finished()->mutable_usage()->set_completion_tokens(length);
          message.mutable_finished()->set_text(".");
          over[c] = true;
          --running;
          continue;
        }
        for (int i = 0; i < per_message + c && next[c] < length; ++i, ++next[c]) {
          const int32_t token = FakeToken(seed + static_cast<uint64_t>(c), static_cast<size_t>(next[c]));
          message.mutable_tokens()->add_ids(token);
          message.mutable_tokens()->mutable_text()->append(FakeText(token));
        }
        message.mutable_tokens()->set_choice(c);
      }
    return messages;
  }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request, Writer* writer) override {
    Death fate;
    {
      std::lock_guard lock(mutex_);
      fate = death(static_cast<int>(requests_.size()));
      requests_.push_back(*request);
    }
    for (const v1::GenerateResponse& message : Script(*request)) {
      if (fate.messages-- <= 0) {
        if (fate.chosen && !fate.status.ok()) context->AddTrailingMetadata("cachalot-error", "1");
        return fate.status;
      }
      if (!writer->Write(message)) return grpc::Status::CANCELLED;
    }
    return grpc::Status::OK;
  }

  Debug debug_;
  const uint64_t drawn_seed_;
  const std::string compat_;
  std::mutex mutex_;
  std::vector<v1::GenerateRequest> requests_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace cachalot::testing

#pragma once
// The public gRPC API of the router (protos: generation.proto, admin.proto) over the request flow.

#include <memory>

#include "cachalot/v1/admin.grpc.pb.h"
#include "cachalot/v1/generation.grpc.pb.h"
#include "common/metrics/registry.h"
#include "common/rpc/server.h"
#include "common/rpc/work_thread.h"
#include "router/frontend.h"
#include "router/request_flow.h"
#include "router/response_sink.h"

namespace cachalot {

class GenerationService {
 public:
  /// Registers on `loop` before Server::Start; all pointers must outlive the server. Requests get UNAVAILABLE
  /// until Serve. `debug_logits` registers the Debug service.
  GenerationService(rpc::Server* server, rpc::Loop* loop, FlowContext* flow, MetricsRegistry* metrics,
                    bool debug_logits);

  /// Any thread: from now on requests are answered.
  void Serve(std::shared_ptr<const Frontend> frontend);
  /// Loop thread: as Serve, in this turn. Null: requests get UNAVAILABLE until the next one.
  void Replace(std::shared_ptr<const Frontend> frontend) { frontend_ = std::move(frontend); }
  /// Any thread: new requests get UNAVAILABLE, running ones go on.
  void Drain();

 private:
  rpc::Task<Status> Generate(rpc::ServerCall& call, const v1::GenerateRequest& request,
                             rpc::ServerWriter<v1::GenerateResponse>& writer);
  rpc::Task<Status> Tokenize(rpc::ServerCall& call, const v1::TokenizeRequest& request,
                             v1::TokenizeResponse* response);
  rpc::Task<StatusOr<std::vector<int32_t>>> Encode(std::shared_ptr<const Frontend> frontend, PromptText text,
                                                   rpc::CancelScope* scope);
  rpc::Task<Status> GetModelInfo(v1::ModelInfo* response);
  rpc::Task<Status> Logits(rpc::ServerCall& call, const v1::LogitsRequest& request,
                           rpc::ServerWriter<v1::LogitsResponse>& writer);
  /// What the choices of one Generate share; lives in its frame.
  struct Choices {
    ResponseStream* stream;
    const Frontend* frontend;
    OutputOptions options;
    TimePoint deadline;
    rpc::CancelScope scope{};
    Siblings siblings{};
    Status status{};     // the first that failed
    int64_t tokens = 0;  // new ones, of all
  };

  Status Ready() const;
  rpc::Task<void> RunChoice(Choices* choices, SequenceState state, int i);
  void Count(const std::string& request_id, const Status& status, int64_t tokens, TimePoint start);

  rpc::Loop* loop_;
  FlowContext* flow_;
  v1::Inference::AsyncService inference_;
  v1::Debug::AsyncService debug_;
  std::shared_ptr<const Frontend> frontend_;  // loop thread
  bool draining_ = false;
  Counter &requests_, &failures_, &cancelled_, &tokens_, &long_texts_;
  Gauge& running_;
  Histogram &first_token_seconds_, &request_seconds_;
  rpc::WorkThread tokenizing_;
};

}  // namespace cachalot

#pragma once
// The routers that a client knows. Routers are stateless and equal: any of them takes any request.

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "cachalot/v1/admin.grpc.pb.h"
#include "cachalot/v1/generation.grpc.pb.h"
#include "client/sdk/client.h"

namespace cachalot::client {

struct Router {
  std::string address;
  std::unique_ptr<v1::Inference::Stub> inference;
  std::unique_ptr<v1::Debug::Stub> debug;
};

class Routers {
 public:
  /// `list`: gRPC targets with commas between them.
  Routers(const std::string& list, const ClientOptions& options);

  size_t size() const { return all_.size(); }
  Router& operator[](size_t i) { return all_[i]; }
  const ClientOptions& options() const { return options_; }
  /// The one that answered last.
  size_t preferred() const { return preferred_; }
  void Prefer(size_t i) { preferred_ = i; }

 private:
  std::vector<Router> all_;
  ClientOptions options_;
  std::atomic<size_t> preferred_ = 0;
};

/// Which routers failed and how, for the error that a caller sees.
class Failures {
 public:
  void Add(const std::string& address, const Status& status);
  int attempts() const { return attempts_; }
  /// "A: why; B: why", the last of each router.
  std::string Describe() const;

 private:
  std::vector<std::pair<std::string, std::string>> last_;  // by router
  int attempts_ = 0;
};

/// How `call` ended. UNKNOWN and INTERNAL that the router did not choose (it marks its errors in the trailers) are gRPC's
/// words for a link that broke within a frame and for bytes that are no message: UNAVAILABLE.
Status FromGrpc(const grpc::Status& status, const grpc::ClientContext& call);

}  // namespace cachalot::client

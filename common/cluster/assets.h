#pragma once
// The files of a checkpoint that a router needs: read from a directory, served by workers, fetched by routers.

#include <memory>
#include <string>

#include "cachalot/v1/cluster.grpc.pb.h"
#include "common/rpc/client.h"
#include "common/rpc/server.h"

namespace cachalot {

inline constexpr int kAssetsMessageBytes = 64 << 20;  // a real tokenizer.json has 8 MB

/// As ReadNonEmptyFile, but a missing tokenizer.json is no error.
StatusOr<v1::GetModelAssetsResponse> ReadModelAssets(const std::string& model_directory);

/// Serves `assets`. Register before Server::Start; must outlive the server.
class AssetsService {
 public:
  AssetsService(rpc::Server* server, rpc::Loop* loop, v1::GetModelAssetsResponse assets);

 private:
  rpc::Task<Status> Get(v1::GetModelAssetsResponse* response);

  v1::ModelAssets::AsyncService service_;
  const v1::GetModelAssetsResponse assets_;
};

/// From the worker at `address`. CANCELLED with `scope`.
rpc::Task<StatusOr<v1::GetModelAssetsResponse>> FetchModelAssets(rpc::Loop* loop, std::string address,
                                                                 TimePoint deadline,
                                                                 rpc::CancelScope* scope = nullptr);

}  // namespace cachalot

#include "common/cluster/assets.h"

#include <filesystem>

#include "common/base/file.h"

namespace cachalot {

StatusOr<v1::GetModelAssetsResponse> ReadModelAssets(const std::string& model_directory) {
  v1::GetModelAssetsResponse assets;
  const std::filesystem::path directory = std::filesystem::path(model_directory).lexically_normal();
  assets.set_model(directory.has_filename() ? directory.filename() : directory.parent_path().filename());
  ASSIGN_OR_RETURN(*assets.mutable_config_json(), ReadNonEmptyFile(directory / "config.json"));
  StatusOr<std::string> tokenizer = ReadNonEmptyFile(directory / "tokenizer.json");
  if (tokenizer.ok()) {
    *assets.mutable_tokenizer_json() = *std::move(tokenizer);
  } else if (tokenizer.status().code() != StatusCode::kNotFound) {
    return tokenizer.status();
  }
  return assets;
}

AssetsService::AssetsService(rpc::Server* server, rpc::Loop* loop, v1::GetModelAssetsResponse assets)
    : assets_(std::move(assets)) {
  server->Unary(loop, &service_, &v1::ModelAssets::AsyncService::RequestGetModelAssets,
                [this](rpc::ServerCall&, const v1::GetModelAssetsRequest&, v1::GetModelAssetsResponse* response) {
                  return Get(response);
                });
}

rpc::Task<Status> AssetsService::Get(v1::GetModelAssetsResponse* response) {
  *response = assets_;
  co_return OkStatus();
}

rpc::Task<StatusOr<v1::GetModelAssetsResponse>> FetchModelAssets(rpc::Loop* loop, std::string address,
                                                                 TimePoint deadline, rpc::CancelScope* scope) {
  const auto channel = rpc::CreateChannel(address, {.max_message_bytes = kAssetsMessageBytes});
  const auto stub = v1::ModelAssets::NewStub(channel);
  auto call = rpc::UnaryCall(loop, stub.get(), &v1::ModelAssets::Stub::PrepareAsyncGetModelAssets,
                             v1::GetModelAssetsRequest(),
                             {.deadline = deadline, .wait_for_ready = true, .scope = scope});
  co_return co_await std::move(call);
}

}  // namespace cachalot

#include "common/cluster/assets.h"

#include <filesystem>
#include <fstream>
#include <sstream>

namespace cachalot {
namespace {

StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return NotFound(path + ": cannot be read");
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

}  // namespace

StatusOr<v1::GetModelAssetsResponse> ReadModelAssets(const std::string& model_directory) {
  v1::GetModelAssetsResponse assets;
  const std::filesystem::path directory = std::filesystem::path(model_directory).lexically_normal();
  assets.set_model(directory.has_filename() ? directory.filename() : directory.parent_path().filename());
  ASSIGN_OR_RETURN(*assets.mutable_config_json(), ReadFile(directory / "config.json"));
  std::error_code ignored;
  if (std::filesystem::exists(directory / "tokenizer.json", ignored)) {
    ASSIGN_OR_RETURN(*assets.mutable_tokenizer_json(), ReadFile(directory / "tokenizer.json"));
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

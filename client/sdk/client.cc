#include "client/sdk/client.h"

#include <chrono>
#include <cstring>

#include "client/sdk/convert.h"
#include "client/sdk/resuming_stream.h"
#include "client/sdk/routers.h"

namespace cachalot::client {
namespace {

using WallClock = std::chrono::system_clock;  // gRPC's deadlines

constexpr auto kUnaryDeadline = std::chrono::seconds(10);
constexpr auto kLogitsDeadline = std::chrono::minutes(10);  // a debugging tool on long prompts

/// A request that is wrong before it is sent.
class RefusedStream final : public TokenStream {
 public:
  explicit RefusedStream(Status status) : status_(std::move(status)) {}
  bool Next(Event*) override { return false; }
  Status Finish() override { return status_; }
  void Cancel() override {}

 private:
  const Status status_;
};

/// One call at the preferred router, or at the next ones while they are not there. `call` gets the router and
/// the context and says how it ended.
template <typename Call>
Status Anywhere(Routers& routers, WallClock::duration at_most, const Call& call) {
  Failures failures;
  for (size_t i = 0, first = routers.preferred();; ++i) {
    Router& router = routers[(first + i) % routers.size()];
    grpc::ClientContext context;
    context.set_deadline(WallClock::now() + at_most);
    const grpc::Status ended = call(router, &context);
    Status status = FromGrpc(ended, context);
    if (status.ok()) routers.Prefer((first + i) % routers.size());
    if (status.code != grpc::StatusCode::UNAVAILABLE) return status;
    failures.Add(router.address, status);
    if (i + 1 < routers.size()) continue;
    if (routers.size() > 1) status.message = "no router answers: " + failures.Describe();
    return status;
  }
}

}  // namespace

struct Client::Impl {
  Routers routers;
};

Client::Client(const std::string& routers, const ClientOptions& options)
    : impl_(new Impl{{routers, options}}) {}

Client::~Client() = default;

std::unique_ptr<TokenStream> Client::Generate(const GenerateRequest& request) {
  const int inputs = request.token_ids.has_value() + request.text.has_value() + !request.chat.empty();
  if (inputs != 1)
    return std::make_unique<RefusedStream>(
        Status{grpc::StatusCode::INVALID_ARGUMENT, "give exactly one of token_ids, text and chat, not " +
                                                       std::to_string(inputs)});
  if (Status utf8 = CheckUtf8(ToProto(request)); !utf8.ok())
    return std::make_unique<RefusedStream>(std::move(utf8));
  return MakeResumingStream(&impl_->routers, request);
}

Status Client::Tokenize(const std::string& text, std::vector<int32_t>* ids) {
  v1::TokenizeRequest request;
  request.set_text(text);
  if (Status utf8 = CheckUtf8(request); !utf8.ok()) return utf8;
  v1::TokenizeResponse response;
  Status status = Anywhere(impl_->routers, kUnaryDeadline, [&](Router& router, grpc::ClientContext* context) {
    return router.inference->Tokenize(context, request, &response);
  });
  ids->assign(response.ids().begin(), response.ids().end());
  return status;
}

Status Client::GetModelInfo(ModelInfo* info) {
  v1::ModelInfo response;
  Status status = Anywhere(impl_->routers, kUnaryDeadline, [&](Router& router, grpc::ClientContext* context) {
    return router.inference->GetModelInfo(context, {}, &response);
  });
  info->model = response.model();
  info->mode = response.mode();
  info->version = response.version();
  info->vocab_size = response.vocab_size();
  info->max_context_tokens = response.max_context_tokens();
  info->eos_token_ids.assign(response.eos_token_ids().begin(), response.eos_token_ids().end());
  info->has_tokenizer = response.has_tokenizer();
  return status;
}

Status Client::Logits(const std::vector<int32_t>& ids, int decode, int max_chunk_tokens,
                      const std::function<void(int64_t, int64_t, const float*, size_t)>& rows) {
  v1::LogitsRequest request;
  request.mutable_ids()->Assign(ids.begin(), ids.end());
  request.set_decode(decode);
  request.set_max_chunk_tokens(max_chunk_tokens);
  bool any = false;
  Status status = Anywhere(impl_->routers, kLogitsDeadline, [&](Router& router, grpc::ClientContext* context) {
    // Rows that the caller has cannot be taken back: what breaks behind them is not tried again.
    if (any) return grpc::Status(grpc::StatusCode::ABORTED, "the router was lost in the middle of the logits");
    auto reader = router.debug->Logits(context, request);
    v1::LogitsResponse response;
    std::vector<float> values;
    while (reader->Read(&response)) {
      any = true;
      values.resize(response.values().size() / sizeof(float));
      if (!values.empty()) std::memcpy(values.data(), response.values().data(), values.size() * sizeof(float));
      rows(response.first_row(), response.rows(), values.data(), values.size());
    }
    return reader->Finish();
  });
  if (status.code == grpc::StatusCode::UNIMPLEMENTED)
    status.message = "the router does not give logits: run all roles with --debug-logits";
  return status;
}

}  // namespace cachalot::client

#include "tests/prefill_worker/prefill_fixture.h"

#include <cstdlib>

#include "common/rpc/error_map.h"
#include "grpcpp/create_channel.h"

namespace cachalot::testing {
namespace {

constexpr int kKvTokens = 16384;

/// The test's experts, for a server that wants its own.
class Gate final : public ExpertBackend {
 public:
  explicit Gate(ExpertBackend* experts) : experts_(experts) {}
  Status Begin(const ExpertCall& call) override { return experts_->Begin(call); }
  Status Wait() override { return experts_->Wait(); }

 private:
  ExpertBackend* experts_;
};

}  // namespace

PrefillCaller::PrefillCaller(v1::Prefill::Stub* stub, const v1::PrefillRequest& request) {
  context_.set_deadline(std::chrono::system_clock::now() + 2 * kPatience);
  reader_ = stub->Prefill(&context_, request);
}

PrefillCaller::~PrefillCaller() {
  context_.TryCancel();
  Finish().IgnoreError();
}

std::optional<v1::PrefillEvent> PrefillCaller::Next() {
  v1::PrefillEvent event;
  if (!reader_->Read(&event)) return std::nullopt;
  if (event.has_progress()) ++heartbeats;
  return event;
}

std::optional<v1::PrefillEvent> PrefillCaller::NextNews() {
  std::optional<v1::PrefillEvent> event = Next();
  while (event && event->has_progress()) event = Next();
  return event;
}

Status PrefillCaller::Finish() {
  if (!status_) {
    while (Next()) {
    }
    status_ = rpc::FromGrpc(reader_->Finish(), /*given_by_handler=*/true);
  }
  return *status_;
}

PrefillFixture::PrefillFixture() : m_(kKvTokens), decode_(m_.pools.layout(), kKvTokens) {
  options_.max_chunk_tokens = 64;
  options_.kv_tokens = kKvTokens;
  options_.max_sequences = 8;
}

PrefillFixture::~PrefillFixture() { m_.experts.AllowAll(); }

void PrefillFixture::Serve() {
  server_ = std::make_unique<PrefillServer>(options_, PrefillEngine{m_.weights, &m_.kernels, &m_.threads},
                                            &registry_);
  const Status started = server_->Start([this](rpc::Loop*) -> StatusOr<std::unique_ptr<ExpertBackend>> {
    return std::make_unique<Gate>(&m_.experts);
  });
  ASSERT_TRUE(started.ok()) << started;
  const auto channel =
      grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->port()), grpc::InsecureChannelCredentials());
  stub_ = v1::Prefill::NewStub(channel);
  cluster_stub_ = v1::Cluster::NewStub(channel);
}

v1::PrefillRequest PrefillFixture::Request(const SequenceState& state) {
  v1::PrefillRequest request;
  *request.mutable_state() = ToProto(state);
  request.mutable_lease()->set_id(FakeDecodeWorker::kLease);
  request.mutable_lease()->set_epoch(FakeDecodeWorker::kEpoch);
  request.set_attempt(FakeDecodeWorker::kAttempt);
  request.set_decode_address(decode_.address());
  *request.mutable_compat() = server_->compat();
  return request;
}

std::unique_ptr<PrefillCaller> PrefillFixture::Call(const v1::PrefillRequest& request) {
  return std::make_unique<PrefillCaller>(stub_.get(), request);
}

v1::Description PrefillFixture::Describe() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kPatience);
  v1::Description description;
  const grpc::Status status = cluster_stub_->Describe(&context, {}, &description);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return description;
}

bool PrefillFixture::EventuallyNothingIsLeft() {
  return Eventually([&] {
    return server_->pools().used_blocks() == 0 && Metric("cachalot_prefill_queue_length") == 0 &&
           decode_.open == 0;
  });
}

double PrefillFixture::Metric(const std::string& name) const {
  const std::string text = "\n" + registry_.Text(), line = "\n" + name + " ";
  const size_t at = text.find(line);
  return at == std::string::npos ? -1 : std::atof(text.c_str() + at + line.size());
}

}  // namespace cachalot::testing

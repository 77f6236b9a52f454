#include "decode_worker/kv_service.h"

#include <charconv>
#include <functional>

#include "common/base/log.h"
#include "common/rpc/slices.h"

namespace cachalot {
namespace {

/// 0, which no lease has, when the caller does not say.
uint64_t LeaseOf(const rpc::ServerCall& call) {
  const std::string text = call.Metadata(kLeaseMetadata).value_or("");
  uint64_t lease = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), lease);
  return error == std::errc() && end == text.data() + text.size() ? lease : 0;
}

}  // namespace

KvService::KvService(rpc::Server* server, rpc::Loop* loop, KvIntake& intake, LeaseTable& leases,
                     DecodeMetrics& metrics, Duration linger)
    : loop_(loop), intake_(intake), leases_(leases), metrics_(metrics), linger_(linger) {
  server->Bidi(loop, &service_, &decltype(service_)::RequestPush, std::bind_front(&KvService::Serve, this));
}

rpc::Task<Status> KvService::Serve(rpc::ServerCall& call, rpc::RawServerStream& stream) {
  Push push{&call, loop_->Now(), LeaseOf(call)};
  pushes_.insert(&push);
  grpc::ByteBuffer frame;
  std::vector<std::byte> bytes;
  while (co_await stream.Read(&frame)) {
    push.heard = loop_->Now();
    metrics_.kv_bytes.Add(static_cast<double>(frame.Length()));
    if (push.lost) {  // read on, so that the sender gets to see its verdict
      if (push.stale) metrics_.stale_frames.Add();
      continue;
    }
    bytes.resize(frame.Length());
    rpc::FrameCursor(frame).Read(bytes);
    const KvIntake::Result result = intake_.Receive(bytes);
    push.lease = result.lease;
    push.judged = result.verdict.has_value();
    push.stale = result.stale;
    if (result.stale) metrics_.stale_frames.Add();
    if (!push.judged) continue;
    push.lost = !result.verdict->ok();
    if (push.lost) LogWarning("KV from " + call.peer() + " refused: " + StatusMessage(*result.verdict));
    const grpc::ByteBuffer answer =
        rpc::CopyFrame(EncodeVerdict(*result.verdict, result.lease, result.epoch, result.attempt));
    if (!co_await stream.Write(answer)) break;
  }
  pushes_.erase(&push);
  co_return OkStatus();
}

void KvService::Tick() {
  const TimePoint now = loop_->Now();
  for (Push* push : pushes_) {
    const bool wanted = !push->judged && leases_.Find(push->lease) != nullptr;
    if (!wanted && now - push->heard > linger_) push->call->TryCancel();
  }
}

}  // namespace cachalot

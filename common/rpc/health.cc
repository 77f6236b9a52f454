#include "common/rpc/health.h"

#include <set>
#include <utility>

#include "common/base/check.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace cachalot::rpc {

HealthState::HealthState() : serving_{{"", false}, {"liveness", false}, {"readiness", false}} {}

void HealthState::Set(const std::string& service, bool serving) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  const auto [entry, added] = serving_.emplace(service, serving);
  if (!added && entry->second == serving) return;
  entry->second = serving;
  if (listener_) listener_();
}

std::optional<bool> HealthState::Get(const std::string& service) const {
  std::lock_guard lock(mutex_);
  const auto entry = serving_.find(service);
  if (entry == serving_.end()) return std::nullopt;
  return entry->second;
}

void HealthState::Close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  for (auto& [service, serving] : serving_) serving = false;
  if (listener_) listener_();
}

bool HealthState::closed() const {
  std::lock_guard lock(mutex_);
  return closed_;
}

void HealthState::SetListener(std::function<void()> listener) {
  std::lock_guard lock(mutex_);
  CHECK_MSG(!listener || !listener_, "two health services on one state");
  listener_ = std::move(listener);
}

namespace proto = ::grpc::health::v1;

class HealthService::Impl {
 public:
  Impl(Server* server, Loop* loop, HealthState* state) : state_(state) {
    server->Unary(
        loop, &service_, &proto::Health::AsyncService::RequestCheck,
        [this](ServerCall&, const proto::HealthCheckRequest& request, proto::HealthCheckResponse* response) {
          return Check(request.service(), response);
        });
    server->ServerStreaming(loop, &service_, &proto::Health::AsyncService::RequestWatch,
                            [this](ServerCall& call, const proto::HealthCheckRequest& request,
                                   ServerWriter<proto::HealthCheckResponse>& writer) {
                              return Watch(&call, request.service(), &writer);
                            });
    state_->SetListener([this, loop] { loop->Post([this] { WakeWatchers(); }); });
  }
  ~Impl() { state_->SetListener(nullptr); }

 private:
  using Serving = proto::HealthCheckResponse;

  Task<Status> Check(std::string service, proto::HealthCheckResponse* response) {
    const std::optional<bool> serving = state_->Get(service);
    if (!serving) co_return NotFound("no health for service '" + service + "'");
    response->set_status(*serving ? Serving::SERVING : Serving::NOT_SERVING);
    co_return OkStatus();
  }

  Task<Status> Watch(ServerCall* call, std::string service,
                     ServerWriter<proto::HealthCheckResponse>* writer) {
    Event changed(call->loop());
    CancelCallback on_cancel(&call->scope(), [&changed] { changed.Set(); });
    watchers_.insert(&changed);
    std::optional<Serving::ServingStatus> sent;
    while (!call->is_cancelled() && !writer->dead()) {
      const bool last = state_->closed();  // before Get, so that what Close changed is sent too
      changed.Reset();
      const std::optional<bool> serving = state_->Get(service);
      const auto now = !serving   ? Serving::SERVICE_UNKNOWN
                       : *serving ? Serving::SERVING
                                  : Serving::NOT_SERVING;
      if (sent != now) {
        proto::HealthCheckResponse response;
        response.set_status(now);
        co_await writer->Write(response);
        sent = now;
      }
      if (last || call->loop()->draining()) break;
      co_await changed.WaitUntil(TimePoint::max());
    }
    watchers_.erase(&changed);
    co_return Unavailable("the server shuts down");
  }

  void WakeWatchers() {
    for (Event* watcher : watchers_) watcher->Set();
  }

  HealthState* state_;
  proto::Health::AsyncService service_;
  std::set<Event*> watchers_;
};

HealthService::HealthService(Server* server, Loop* loop, HealthState* state)
    : impl_(std::make_unique<Impl>(server, loop, state)) {}

HealthService::~HealthService() = default;

}  // namespace cachalot::rpc

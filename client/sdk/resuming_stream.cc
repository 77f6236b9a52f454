#include "client/sdk/resuming_stream.h"

#include <grpcpp/alarm.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <list>
#include <mutex>

#include "client/sdk/convert.h"

namespace cachalot::client {
namespace {

using WallClock = std::chrono::system_clock;  // gRPC's deadlines

constexpr auto kFirstPause = std::chrono::milliseconds(100);  // after all routers have failed once
constexpr auto kLongestPause = std::chrono::milliseconds(1000);

/// One call at one router, for the whole request or for one choice.
struct Part {
  enum class Step { kPause, kStart, kRead, kFinish } step = Step::kPause;
  int choice = kAllChoices;
  size_t router = 0;
  int failures = 0;  // attempts before this one, in a row, that brought nothing new
  bool alive = true;  // the stream may bring more
  Status refusal;     // why we ended it
  grpc::Alarm pause;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateResponse>> reader;
  v1::GenerateResponse response;
  grpc::Status status;
};

class ResumingStream final : public TokenStream {
 public:
  ResumingStream(Routers* routers, const GenerateRequest& request)
      : routers_(routers), state_(ToProto(request)) {
    if (request.timeout_ms > 0) deadline_ = WallClock::now() + std::chrono::milliseconds(request.timeout_ms);
    Add(kAllChoices, routers_->preferred(), 0);
  }

  ~ResumingStream() override {
    Cancel();
    while (!parts_.empty()) Turn();
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  bool Next(Event* event) override {
    while (events_.empty() && !parts_.empty()) Turn();
    if (events_.empty()) return false;
    *event = std::move(events_.front());
    events_.pop_front();
    return true;
  }

  Status Finish() override {
    Event rest;
    while (Next(&rest)) {
    }
    return status_;
  }

  void Cancel() override {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    CancelParts();
  }

 private:
  /// Adds the call and starts it, at once or after a pause.
  void Add(int choice, size_t router, int failures) {
    std::lock_guard lock(mutex_);
    Part& part = parts_.emplace_back();
    part.choice = choice;
    part.router = router;
    part.failures = failures;
    const int rounds = failures / static_cast<int>(routers_->size());
    if (rounds == 0 || failures % static_cast<int>(routers_->size()) != 0) {
      Start(part);
    } else {
      const auto pause = std::min(kLongestPause, kFirstPause * (1 << std::min(rounds - 1, 4)));
      part.pause.Set(&queue_, std::min(deadline_, WallClock::now() + pause), &part);
    }
    if (cancelled_ || !status_.ok()) CancelParts();
  }

  void Start(Part& part) {
    if (deadline_ != WallClock::time_point::max()) part.context.set_deadline(deadline_);
    part.step = Part::Step::kStart;
    part.reader = (*routers_)[part.router].inference->PrepareAsyncGenerate(
        &part.context, state_.RequestFor(part.choice), &queue_);
    part.reader->StartCall(&part);
  }

  void CancelParts() {
    for (Part& part : parts_) {
      part.pause.Cancel();
      part.context.TryCancel();
    }
  }

  /// Waits for the next thing to happen to any part.
  void Turn() {
    void* tag = nullptr;
    bool ok = false;
    queue_.Next(&tag, &ok);
    Part& part = *static_cast<Part*>(tag);
    switch (part.step) {
      case Part::Step::kPause: {
        std::lock_guard lock(mutex_);
        Start(part);  // a context that was cancelled ends the call at once
        return;
      }
      case Part::Step::kStart:
        return ok ? Read(part) : End(part);
      case Part::Step::kRead:
        return ok ? Take(part) : End(part);
      case Part::Step::kFinish:
        return Ended(part);
    }
  }

  void Read(Part& part) {
    part.step = Part::Step::kRead;
    part.reader->Read(&part.response, &part);
  }

  void End(Part& part) {
    part.step = Part::Step::kFinish;
    part.reader->Finish(&part.status, &part);
  }

  void Take(Part& part) {
    if (part.refusal.ok() && status_.ok()) {
      ResumeState::Taken taken = state_.Take(part.choice, part.response);
      if (part.response.has_started()) routers_->Prefer(part.router);
      if (taken.news) {
        part.failures = 0;
        failures_ = {};
      }
      if (taken.event) events_.push_back(std::move(*taken.event));
      if (!taken.refusal.ok()) {
        part.refusal = std::move(taken.refusal);
        part.context.TryCancel();
      }
    }
    Read(part);
  }

  void Ended(Part& part) {
    const int choice = part.choice;
    const size_t router = part.router;
    const int failures = part.failures + 1;
    Status status = FromGrpc(part.status, part.context);
    if (!part.refusal.ok()) status = part.refusal;
    const std::vector<int> missing = state_.Missing(choice);
    if (status.ok() && !missing.empty() && !state_.finished())
      status = {grpc::StatusCode::UNAVAILABLE, "it ended the stream before the output had ended"};
    {
      std::lock_guard lock(mutex_);
      parts_.remove_if([&](const Part& p) { return &p == &part; });
    }
    if (status.ok() || !status_.ok()) return;  // done, or failed already by another part
    if (missing.empty()) return;               // only the status of an output that is whole was lost
    if (Cancelled()) return Fail({grpc::StatusCode::CANCELLED, "cancelled by the caller"});
    failures_.Add((*routers_)[router].address, status);
    if (!MayGoOn(status) || failures >= routers_->options().attempts) return Fail(status);
    for (const int next : missing) Add(next, (router + 1) % routers_->size(), failures);
  }

  /// Whether another router may do better.
  bool MayGoOn(const Status& status) {
    switch (status.code) {
      case grpc::StatusCode::UNAVAILABLE:
        return !Cancelled();
      case grpc::StatusCode::CANCELLED:  // unless it is ours, by a router that shuts down
        return !Cancelled();
      case grpc::StatusCode::RESOURCE_EXHAUSTED:  // a refusal of a new request is the caller's to handle
      case grpc::StatusCode::ABORTED:
      case grpc::StatusCode::FAILED_PRECONDITION:
      case grpc::StatusCode::DATA_LOSS:
        return state_.started() && !Cancelled();
      default:
        return false;
    }
  }

  bool Cancelled() {
    std::lock_guard lock(mutex_);
    return cancelled_;
  }

  void Fail(Status status) {
    if (failures_.attempts() > 1 && !Cancelled())
      status.message = "gave up after " + std::to_string(failures_.attempts()) +
                       " failures without news, with " + std::to_string(state_.tokens()) +
                       " output tokens: " + failures_.Describe();
    status_ = std::move(status);
    std::lock_guard lock(mutex_);
    CancelParts();
  }

  Routers* const routers_;
  ResumeState state_;
  WallClock::time_point deadline_ = WallClock::time_point::max();
  grpc::CompletionQueue queue_;
  std::mutex mutex_;  // parts_ as a list, and cancelled_: Cancel comes from any thread
  std::list<Part> parts_;
  bool cancelled_ = false;
  std::deque<Event> events_;
  Failures failures_;  // since the last news
  Status status_;
};

}  // namespace

std::unique_ptr<TokenStream> MakeResumingStream(Routers* routers, const GenerateRequest& request) {
  return std::make_unique<ResumingStream>(routers, request);
}

}  // namespace cachalot::client

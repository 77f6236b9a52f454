#pragma once
// Messages for one stream, in order, one write in flight. For several tasks that write to the same stream.

#include <deque>
#include <utility>

#include "common/base/check.h"
#include "common/base/time.h"
#include "common/rpc/event.h"
#include "common/rpc/loop.h"
#include "common/rpc/task.h"

namespace cachalot::rpc {

/// `Stream` is ServerStream, ClientStream or anything with WriteMessage and an awaitable Write(const
/// WriteMessage&). Loop thread only. The queue and the stream must live until Flush or Closed has returned
/// true.
template <typename Stream>
class WriteQueue {
 public:
  using Message = typename Stream::WriteMessage;
  enum class Pushed {
    kOk,
    kFull,    ///< `limit` messages wait: the peer is slow. The message is dropped.
    kClosed,  ///< a write failed, or Close: the message is dropped.
  };

  WriteQueue(Loop* loop, Stream* stream, size_t limit)
      : loop_(loop), stream_(stream), limit_(limit), idle_(loop), space_(loop) {
    idle_.Set();
    space_.Set();
  }
  WriteQueue(const WriteQueue&) = delete;
  WriteQueue& operator=(const WriteQueue&) = delete;
  ~WriteQueue() { CHECK_MSG(!pumping_, "a write queue destroyed under its write"); }

  [[nodiscard]] Pushed Push(Message message) {
    if (closed_) return Pushed::kClosed;
    if (messages_.size() >= limit_) return Pushed::kFull;
    messages_.push_back(std::move(message));
    if (messages_.size() >= limit_) space_.Reset();
    if (!pumping_) {
      pumping_ = true;
      idle_.Reset();
      CHECK(loop_->Spawn(Pump(), "write queue"));
    }
    return Pushed::kOk;
  }

  /// As Push, but waits for room until `deadline`; kFull then.
  Task<Pushed> PushUntil(Message message, TimePoint deadline) {
    while (!closed_ && messages_.size() >= limit_) {
      const bool room = co_await space_.WaitUntil(deadline);
      if (!room) co_return Pushed::kFull;
    }
    co_return Push(std::move(message));
  }

  /// co_await: true when everything pushed so far was written or dropped and nothing is in flight.
  Event::Wait Flush(TimePoint deadline) { return idle_.WaitUntil(deadline); }
  /// Drops what is queued and refuses more. A write in flight still ends by itself: Flush, then destroy.
  void Close() {
    closed_ = true;
    messages_.clear();
    space_.Set();
  }
  bool closed() const { return closed_; }
  size_t size() const { return messages_.size(); }

 private:
  Task<void> Pump() {
    while (!messages_.empty()) {
      writing_ = std::move(messages_.front());
      messages_.pop_front();
      space_.Set();
      const bool written = co_await stream_->Write(writing_);
      if (!written) Close();
    }
    pumping_ = false;
    idle_.Set();
  }

  Loop* loop_;
  Stream* stream_;
  const size_t limit_;
  std::deque<Message> messages_;
  Message writing_;
  Event idle_, space_;
  bool pumping_ = false, closed_ = false;
};

}  // namespace cachalot::rpc

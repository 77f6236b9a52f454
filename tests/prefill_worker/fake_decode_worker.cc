#include "tests/prefill_worker/fake_decode_worker.h"

#include <gtest/gtest.h>

#include <functional>

#include "common/rpc/slices.h"

namespace cachalot::testing {

FakeDecodeWorker::FakeDecodeWorker(const KvLayout& layout, int64_t max_tokens)
    : pools_(layout, 1, max_tokens),
      kv_(*pools_.Reserve(max_tokens)),
      receiver_(&kv_, max_tokens),
      server_({}),
      loop_(server_.AddLoop({.name = "decode"})),
      go_(loop_) {
  server_.Bidi(loop_, &service_, &decltype(service_)::RequestPush,
               std::bind_front(&FakeDecodeWorker::Push, this));
  const auto port = server_.Start();
  EXPECT_TRUE(port.ok()) << port.status();
  loop_->Start();
}

FakeDecodeWorker::~FakeDecodeWorker() { server_.Shutdown(Duration::zero()); }

void FakeDecodeWorker::Behave(Manner manner, std::optional<Status> verdict) {
  std::lock_guard lock(mutex_);
  manner_ = manner;
  verdict_ = std::move(verdict);
}

void FakeDecodeWorker::GiveVerdict(std::optional<Status> verdict) {
  {
    std::lock_guard lock(mutex_);
    verdict_ = std::move(verdict);
  }
  loop_->Post([this] { go_.Set(); });
}

std::optional<KvCommit> FakeDecodeWorker::commit() {
  std::lock_guard lock(mutex_);
  return commit_;
}

// The receiver's verdict: OK for rows that were placed and for a commit that is complete.
Status FakeDecodeWorker::Take(const grpc::ByteBuffer& message) {
  rpc::FrameCursor cursor(message);
  std::vector<std::byte> bytes(cursor.remaining());
  cursor.Read(bytes);
  ASSIGN_OR_RETURN(const KvFrameView frame, ParseKvFrame(bytes));
  EXPECT_EQ(frame.header.lease, kLease);
  EXPECT_EQ(frame.header.epoch, kEpoch);
  EXPECT_EQ(frame.header.attempt, kAttempt);
  ++frames;
  if (frame.header.kind == KvFrameKind::kRows) return receiver_.Place(frame);
  ASSIGN_OR_RETURN(const KvCommit commit, DecodeCommit(frame.payload));
  {
    std::lock_guard lock(mutex_);
    commit_ = commit;
  }
  const Status complete = receiver_.Commit(commit);
  ++commits;
  return complete;
}

rpc::Task<Status> FakeDecodeWorker::Push(rpc::ServerCall& call, rpc::RawServerStream& stream) {
  Manner manner;
  {
    std::lock_guard lock(mutex_);
    manner = manner_;
    commit_.reset();
  }
  go_.Reset();
  ++streams;
  ++open;
  receiver_.Restart();
  rpc::CancelCallback on_cancel(&call.scope(), [this] { go_.Set(); });
  if (manner == Manner::kDoNotRead) co_await go_.WaitUntil(TimePoint::max());
  grpc::ByteBuffer message;
  Status taken;
  while (co_await stream.Read(&message)) {
    taken = Take(message);
    if (!taken.ok() || manner == Manner::kEnd || manner == Manner::kRefuse || commit()) break;
  }
  if (manner == Manner::kHoldVerdict && commit()) co_await go_.WaitUntil(TimePoint::max());
  Status verdict;
  {
    std::lock_guard lock(mutex_);
    verdict = verdict_.value_or(taken);
  }
  if (call.is_cancelled() || stream.dead() || (taken.ok() && !commit() && manner == Manner::kAnswer)) {
    ++cancelled;
  } else if (manner != Manner::kEnd) {
    const grpc::ByteBuffer answer = rpc::CopyFrame(EncodeVerdict(verdict, kLease, kEpoch, kAttempt));
    co_await stream.Write(answer);
    verdict = OkStatus();
  }
  --open;
  co_return verdict;
}

}  // namespace cachalot::testing

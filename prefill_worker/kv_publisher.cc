#include "prefill_worker/kv_publisher.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/rpc/slices.h"
#include "common/rpc/task_group.h"
#include "prefill_worker/chunk_planner.h"
#include "prefill_worker/row_messages.h"

namespace cachalot {
namespace {

constexpr char kPushMethod[] = "/cachalot.v1.KvTransfer/Push";

StatusOr<Status> ParseVerdict(const grpc::ByteBuffer& message) {
  rpc::FrameCursor cursor(message);
  std::vector<std::byte> bytes(cursor.remaining());
  cursor.Read(bytes);
  ASSIGN_OR_RETURN(const KvFrameView frame, ParseKvFrame(bytes));
  if (frame.header.kind != KvFrameKind::kVerdict)
    return DataLoss("the decode worker sent a frame that is no verdict");
  return DecodeVerdict(frame.payload);
}

}  // namespace

KvEncoder::KvEncoder(std::optional<PushTarget> target, int64_t context_tokens, int64_t first_index,
                     std::function<void(JobEvent)> report, Windows windows)
    : target_(target),
      context_tokens_(context_tokens),
      first_index_(first_index),
      windows_(windows),
      report_(std::move(report)) {}

void KvEncoder::OnChunk(const SequenceKv& kv, int64_t from, int64_t to, std::span<const float> logits) {
  SplitLogits(from, to, logits, [this](int64_t first, int64_t count, std::span<const float> rows) {
    JobEvent event{.kind = JobEvent::Kind::kChunk, .first = first, .count = count};
    event.logits.assign(rows.begin(), rows.end());
    event.row_bytes = static_cast<int64_t>(rows.size_bytes());
    Report(std::move(event));
  });
  if (!target_) return;
  for (const RowRange& range : kv.layout().AppendedRows(from, to)) SplitIntoFrames(kv.layout(), range);
  if (to < context_tokens_) return Encode(kv);
  // The first token is due in a moment and must not wait for these rows: OnFirstToken encodes them.
  for (const RowRange& range : kv.layout().StateRows(to)) SplitIntoFrames(kv.layout(), range);
}

void KvEncoder::OnPromptLogprobs(int64_t first, std::vector<TokenLogprobs> entries) {
  SplitLogprobs(first, std::move(entries), [this](int64_t at, std::vector<TokenLogprobs> piece, int64_t bytes) {
    JobEvent event{.kind = JobEvent::Kind::kPromptLogprobs, .first = at};
    event.logprobs = std::move(piece);
    event.row_bytes = bytes;
    Report(std::move(event));
  });
}

void KvEncoder::Report(JobEvent event) {
  unread_row_bytes_ += event.row_bytes;
  report_(std::move(event));
}

int64_t KvEncoder::RowsWanted(int64_t row_bytes) const {
  return RowsThatFit(unread_row_bytes_, windows_.row_bytes, row_bytes);
}

void KvEncoder::OnFirstToken(OutputToken first, SequenceKv kv) {
  JobEvent event{
      .kind = JobEvent::Kind::kFirstToken, .token = first.token, .finish = first.finish, .cached = cached_};
  if (first.logprobs) event.logprobs.push_back(std::move(*first.logprobs));
  report_(std::move(event));
  first_token_ = first.token;
  done_ = !target_ || first.finish != FinishReason::kNone;
  if (done_) return;
  kv_ = std::move(kv);
  Encode(kv_);
}

void KvEncoder::OnError(const Status& status) {
  done_ = true;
  report_({.kind = JobEvent::Kind::kFailed, .error = status});
}

void KvEncoder::Release(int64_t bytes) {
  in_flight_ -= bytes;
  // While the job is in the flow its KV is the flow's: the next chunk goes on.
  if (kv_.valid()) Encode(kv_);
}

void KvEncoder::SplitIntoFrames(const KvLayout& layout, const RowRange& range) {
  const int64_t row_bytes = layout.pool(range.pool).row_bytes();
  const int64_t most =
      std::max<int64_t>(1, (kMaxFrameBytes - static_cast<int64_t>(sizeof(KvFrameHeader))) / row_bytes);
  for (int64_t at = 0; at < range.count; at += most)
    ranges_.push_back({range.pool, range.layer, range.first + at, std::min(most, range.count - at)});
}

// As many rows as the window takes; with the last of them the commit, and the KV goes.
void KvEncoder::Encode(const SequenceKv& kv) {
  std::vector<PushFrame> frames;
  while (!ranges_.empty() && in_flight_ < windows_.frame_bytes) {
    AddFrame(frames, EncodeRows(kv, ranges_.front(), target_->lease, target_->epoch, target_->attempt),
             false);
    KvFrameHeader header;
    std::memcpy(&header, frames.back().bytes->data(), sizeof(header));
    tally_.Add(header);
    ranges_.pop_front();
  }
  if (ranges_.empty() && kv_.valid()) {
    const KvCommit commit{context_tokens_, first_token_, first_index_, tally_};
    AddFrame(frames, EncodeCommit(commit, target_->lease, target_->epoch, target_->attempt), true);
    kv_.Release();
    done_ = true;
  }
  if (!frames.empty()) report_({.kind = JobEvent::Kind::kFrames, .frames = std::move(frames)});
}

void KvEncoder::AddFrame(std::vector<PushFrame>& frames, std::vector<std::byte> bytes, bool commit) {
  in_flight_ += static_cast<int64_t>(bytes.size());
  frames.push_back({std::make_shared<const std::vector<std::byte>>(std::move(bytes)), commit});
}

KvPush::KvPush(rpc::Loop* loop, std::shared_ptr<grpc::Channel> channel, std::string address, uint64_t lease,
               KvPushOptions options, std::function<void(int64_t)> sent, std::function<void(Status)> settled)
    : loop_(loop),
      channel_(std::move(channel)),
      address_(std::move(address)),
      lease_(lease),
      options_(options),
      sent_(std::move(sent)),
      settled_(std::move(settled)),
      frames_(loop),
      answered_(loop),
      watchdog_(loop, [this] {
        if (stream_) stream_->TryCancel();
      }) {}

void KvPush::Add(std::vector<PushFrame> frames) {
  for (PushFrame& frame : frames) frames_.Push(std::move(frame));
}

void KvPush::Cancel() {
  cancelled_ = true;
  frames_.Close();
  if (stream_) stream_->TryCancel();
}

void KvPush::Settle(Status status) {
  if (!cancelled_ && settled_) std::exchange(settled_, nullptr)(std::move(status));
}

rpc::Task<void> KvPush::Run(std::shared_ptr<KvPush> push, rpc::CancelScope* scope) {
  KvPush& self = *push;
  if (self.cancelled_) co_return;
  rpc::RawClientStream stream(self.loop_, {.scope = scope, .metadata = {{kLeaseMetadata, std::to_string(self.lease_)}}});
  rpc::TaskGroup tasks(self.loop_);
  self.stream_ = &stream;
  tasks.Spawn(self.watchdog_.Run(), "watchdog of a KV push");
  self.watchdog_.Expect("open a stream for KV", self.options_.open);
  const bool open = co_await stream.StartRaw(self.channel_, kPushMethod);
  if (open) {
    self.watchdog_.Rest();
    tasks.Spawn(self.ReadVerdict(&stream), "verdict of a KV push");
    co_await self.SendFrames(&stream);
    if (self.committed_) self.watchdog_.Expect("give its verdict", self.options_.verdict);
    co_await self.answered_.WaitUntil(TimePoint::max());
  }
  co_await self.Close(&stream);
  self.watchdog_.Stop();
  co_await tasks.JoinAll();
  self.stream_ = nullptr;
}

rpc::Task<void> KvPush::SendFrames(rpc::RawClientStream* stream) {
  while (!committed_) {
    std::optional<PushFrame> frame = co_await frames_.PopUntil(TimePoint::max());
    if (!frame) co_return;
    const auto size = static_cast<int64_t>(frame->bytes->size());
    sent_bytes_ += size;
    ++sent_frames_;
    committed_ = frame->commit;  // before the write: the verdict may be seen before the end of the write
    const grpc::ByteBuffer message = rpc::FrameBuilder().Share(*frame->bytes, frame->bytes).Build();
    grpc::WriteOptions options;
    if (frames_.size() > 0)
      options.set_buffer_hint();  // the next one follows at once: they may share a packet
    watchdog_.Expect("take a KV frame", options_.write);
    const bool written = co_await stream->Write(message, options);
    watchdog_.Rest();
    if (!written) co_return;
    if (!cancelled_) sent_(size);
  }
}

// From the start, not only after the commit: a decode worker that does not want the rows may say so at any
// time.
rpc::Task<void> KvPush::ReadVerdict(rpc::RawClientStream* stream) {
  grpc::ByteBuffer message;
  const bool read = co_await stream->Read(&message);
  if (read) {
    const StatusOr<Status> verdict = ParseVerdict(message);
    verdict_ = verdict.ok() ? *verdict : verdict.status();
    if (verdict_->ok() && !committed_)
      verdict_ = DataLoss("the decode worker accepted KV that is not complete");
    Settle(*verdict_);
  }
  frames_.Close();
  answered_.Set();
}

rpc::Task<void> KvPush::Close(rpc::RawClientStream* stream) {
  if (verdict_ && verdict_->ok()) {
    watchdog_.Expect("end the stream", options_.verdict);
    co_await stream->WritesDone();
  } else if (verdict_) {
    stream->TryCancel();
  }
  // Without a verdict the stream has ended by itself. Cancelling it now could hide the status that says why.
  const Status ended = co_await stream->Finish();
  Settle(StatusOf(ended));
}

// Of a stream that ended without a verdict.
Status KvPush::StatusOf(const Status& ended) const {
  const std::string where = "decode worker " + address_;
  const std::string sent =
      " (" + std::to_string(sent_frames_) + " frames, " + std::to_string(sent_bytes_) + " bytes sent)";
  // Not UNAVAILABLE: who tries again under the same lease meets the same silence.
  if (watchdog_.barked()) return Aborted(where + " did not " + watchdog_.missed() + sent);
  if (ended.ok()) return Unavailable(where + " ended the KV push without a verdict" + sent);
  // CANCELLED is not ours here: the decode worker gave up the stream, as it does when it shuts down.
  if (ended.code() == StatusCode::kCancelled) return Unavailable(where + " ended the KV push" + sent);
  return Annotate(ended, where + sent);
}

}  // namespace cachalot

#pragma once
// The KV hand-off of one request to its decode worker, in two halves:
//
//   step thread    KvEncoder   rows of each chunk -> frames of at most 1 MiB          (a PrefillSink)
//                     |  JobEvent                    ^  Release: so many bytes were sent
//                     v                              |
//   control loop   KvPush      frames -> one raw stream -> commit frame -> verdict
//
// Frames of chunk k travel while chunk k+1 is computed. Not more than a window of bytes is encoded ahead of
// what was sent: rows beyond it wait in the KV, which final rows can, and the KV is given back as soon as all
// is encoded.
//
// Rows for the caller (logits, log probabilities of the prompt) cannot wait anywhere: once the caller has a
// window of them to read, the job gets no chunk until it has read half of it.

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/base/time.h"
#include "common/kv/transfer_frame.h"
#include "common/rpc/async_queue.h"
#include "common/rpc/client_stream.h"
#include "prefill_worker/prefill_flow.h"
#include "prefill_worker/watchdog.h"

namespace cachalot {

/// Which lease of the decode worker the rows are for.
struct PushTarget {
  uint64_t lease = 0;
  uint64_t epoch = 0;
  uint32_t attempt = 0;
};

struct PushFrame {
  std::shared_ptr<const std::vector<std::byte>> bytes;
  bool commit = false;  // the last one
};

/// What happens to a job, in order.
struct JobEvent {
  enum class Kind {
    kChunk,   // tokens [first, first + count) are computed; logits [count, vocab] when wanted, 2 MiB at most
    kFrames,  // frames to push
    kFirstToken,      // token, finish, cached, logprobs of that one when wanted
    kPromptLogprobs,  // of prompt token `first` and those that follow, 4,096 at most
    kFailed,          // error: the job is over on the step thread
    kPushed,          // error: the verdict, or why there is none
    kGone,            // the caller gave up
    kTurn,            // first of those that wait for KV
  };
  Kind kind{};
  int64_t first = 0, count = 0;
  std::vector<float> logits;
  std::vector<PushFrame> frames;
  int32_t token = 0;
  FinishReason finish = FinishReason::kNone;
  int64_t cached = 0;  // tokens of the context that came from the prefix cache
  std::vector<TokenLogprobs> logprobs;
  int64_t row_bytes = 0;  // of logits and prompt log probabilities: the reader's to release
  Status error;
};

/// Step thread. Hears of a job's progress, reports it and encodes its rows.
class KvEncoder final : public PrefillSink {
 public:
  static constexpr int64_t kMaxFrameBytes = 1 << 20;

  struct Windows {
    int64_t frame_bytes = 8 << 20;  // encoded ahead of what was sent
    int64_t row_bytes = 8 << 20;    // reported ahead of what the caller has read
  };

  /// Without a target nothing is encoded. `first_index` is the output index of the first token.
  KvEncoder(std::optional<PushTarget> target, int64_t context_tokens, int64_t first_index,
            std::function<void(JobEvent)> report, Windows windows);

  void OnChunk(const SequenceKv& kv, int64_t from, int64_t to, std::span<const float> logits) override;
  void OnPromptLogprobs(int64_t first, std::vector<TokenLogprobs> entries) override;
  int64_t RowsWanted(int64_t row_bytes) const override;
  void OnCached(int64_t tokens) override { cached_ = tokens; }
  void OnFirstToken(OutputToken first, SequenceKv kv) override;
  void OnError(const Status& status) override;

  /// `bytes` have been sent: there is room for as many more.
  void Release(int64_t bytes);
  /// Events with so many `row_bytes` have been read.
  void ReleaseRows(int64_t bytes) { unread_row_bytes_ -= bytes; }
  /// Nothing will be reported any more; the KV is free.
  bool done() const { return done_; }

 private:
  void Report(JobEvent event);
  void Encode(const SequenceKv& kv);
  void AddFrame(std::vector<PushFrame>& frames, std::vector<std::byte> bytes, bool commit);
  void SplitIntoFrames(const KvLayout& layout, const RowRange& range);

  const std::optional<PushTarget> target_;
  const int64_t context_tokens_, first_index_;
  const Windows windows_;
  const std::function<void(JobEvent)> report_;
  std::deque<RowRange> ranges_;  // final rows, a frame each, not yet encoded
  KvTally tally_;
  int64_t in_flight_ = 0;  // bytes encoded and not yet sent
  int64_t unread_row_bytes_ = 0;
  int64_t cached_ = 0;
  int32_t first_token_ = 0;
  SequenceKv kv_;  // valid once the job has left the flow, until all is encoded
  bool done_ = false;
};

struct KvPushOptions {
  int64_t window_bytes = 8 << 20;              // encoded ahead of what was sent
  Duration open = std::chrono::seconds(3);     // until the stream is there
  Duration write = std::chrono::seconds(3);    // a frame of at most 1 MiB
  Duration verdict = std::chrono::seconds(3);  // after the commit frame
};

/// Control loop. One stream to the decode worker.
class KvPush {
 public:
  /// `sent(bytes)` after each frame; `settled(verdict)` once, unless Cancel comes first.
  KvPush(rpc::Loop* loop, std::shared_ptr<grpc::Channel> channel, std::string address, uint64_t lease,
         KvPushOptions options, std::function<void(int64_t)> sent, std::function<void(Status)> settled);

  /// Opens the stream, sends what Add brings and waits for the verdict. Once; keeps `push` until the stream
  /// has ended, which may be after `settled`. `scope` cancels it.
  static rpc::Task<void> Run(std::shared_ptr<KvPush> push, rpc::CancelScope* scope);

  void Add(std::vector<PushFrame> frames);
  /// Ends the stream; nothing is called back any more.
  void Cancel();

  int64_t sent_bytes() const { return sent_bytes_; }
  /// The decode worker was silent for too long: its connection is as good as dead.
  bool silent() const { return watchdog_.barked(); }
  const std::string& address() const { return address_; }

 private:
  rpc::Task<void> SendFrames(rpc::RawClientStream* stream);
  rpc::Task<void> ReadVerdict(rpc::RawClientStream* stream);
  rpc::Task<void> Close(rpc::RawClientStream* stream);
  Status StatusOf(const Status& ended) const;
  void Settle(Status status);

  rpc::Loop* loop_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::string address_;
  const uint64_t lease_;
  const KvPushOptions options_;
  std::function<void(int64_t)> sent_;
  std::function<void(Status)> settled_;

  rpc::AsyncQueue<PushFrame> frames_;
  rpc::Event answered_;  // the verdict came or the stream ended
  rpc::RawClientStream* stream_ = nullptr;
  Watchdog watchdog_;
  std::optional<Status> verdict_;
  int64_t sent_bytes_ = 0, sent_frames_ = 0;
  bool committed_ = false, cancelled_ = false;
};

}  // namespace cachalot

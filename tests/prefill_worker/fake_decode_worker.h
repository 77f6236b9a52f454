#pragma once
// The decode worker's end of a hand-off, in a test: takes the frames of one lease and answers as it is told.

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>

#include "cachalot/v1/kv_transfer.grpc.pb.h"
#include "common/kv/transfer_frame.h"
#include "common/rpc/server.h"

namespace cachalot::testing {

class FakeDecodeWorker {
 public:
  static constexpr uint64_t kLease = 77, kEpoch = 0xfeedfacecafebeef;
  static constexpr uint32_t kAttempt = 2;

  enum class Manner {
    kAnswer,       // with a verdict, after the commit
    kHoldVerdict,  // until GiveVerdict
    kDoNotRead,    // takes no frame
    kEnd,          // ends the stream at the first frame, with the verdict as the call's status
    kRefuse,       // gives the verdict at the first frame
  };

  FakeDecodeWorker(const KvLayout& layout, int64_t max_tokens);
  ~FakeDecodeWorker();

  std::string address() const { return "127.0.0.1:" + std::to_string(server_.port()); }
  /// Before the calls that it is for. Without a verdict the receiver's is given.
  void Behave(Manner manner, std::optional<Status> verdict = std::nullopt);
  void GiveVerdict(std::optional<Status> verdict = std::nullopt);

  /// Valid after a commit that was complete. Leave it to this worker or release it.
  SequenceKv& kv() { return kv_; }
  std::optional<KvCommit> commit();

  std::atomic<int> streams{0};    ///< opened so far
  std::atomic<int> open{0};       ///< open now
  std::atomic<int> cancelled{0};  ///< ended by the prefill worker before the verdict
  std::atomic<int> frames{0}, commits{0};

 private:
  rpc::Task<Status> Push(rpc::ServerCall& call, rpc::RawServerStream& stream);
  Status Take(const grpc::ByteBuffer& message);

  BlockPools pools_;
  SequenceKv kv_;
  KvReceiver receiver_;
  v1::KvTransfer::WithRawMethod_Push<v1::KvTransfer::Service> service_;
  rpc::Server server_;
  rpc::Loop* loop_;
  rpc::Event go_;  // the verdict may be given

  std::mutex mutex_;
  Manner manner_ = Manner::kAnswer;
  std::optional<Status> verdict_;
  std::optional<KvCommit> commit_;
};

}  // namespace cachalot::testing

#include "decode_worker/kv_intake.h"

#include "common/base/check.h"

namespace cachalot {

KvIntake::KvIntake(LeaseTable& leases, const ModelConfig& config, StartSequence start)
    : leases_(leases), config_(config), start_(std::move(start)) {}

KvIntake::Result KvIntake::Receive(std::span<const std::byte> bytes) {
  Result result;
  const auto frame = ParseKvFrame(bytes);
  if (!frame.ok()) {
    result.verdict = frame.status();
    return result;
  }
  const KvFrameHeader& header = frame->header;
  result.lease = header.lease;
  result.epoch = header.epoch;
  result.attempt = header.attempt;
  const auto lease = leases_.FindValid(header.lease, header.epoch);
  if (!lease.ok()) {
    result.verdict = lease.status();
    return result;
  }
  result.stale = header.attempt < (*lease)->attempt;
  Status status = TakeOver(**lease, header.attempt);
  if (status.ok() && header.kind == KvFrameKind::kCommit) {
    result.verdict = Commit(**lease, *frame);
  } else {
    if (status.ok() && header.kind != KvFrameKind::kRows)
      status = DataLoss("KV frame: a verdict from the sender");
    if (status.ok() && (*lease)->phase == LeasePhase::kRunning)
      status = Aborted("KV rows of attempt " + std::to_string(header.attempt) + " after its commit");
    if (status.ok()) status = (*lease)->receiver.Place(*frame);
    if (!status.ok()) result.verdict = status;
  }
  return result;
}

// Makes the frame's attempt the lease's, or says why it cannot be.
Status KvIntake::TakeOver(Lease& lease, uint32_t attempt) {
  const auto number = [](uint32_t n) { return "attempt " + std::to_string(n); };
  if (attempt == 0) return InvalidArgument("KV frame of attempt 0: attempts count from 1");
  if (attempt < lease.attempt) return Aborted(number(attempt) + " was replaced by " + number(lease.attempt));
  if (attempt == lease.attempt) return OkStatus();
  if (lease.phase == LeasePhase::kRunning)
    return Aborted(number(attempt) + " came when the sequence ran already, with " + number(lease.attempt));
  lease.receiver.Restart();
  lease.attempt = attempt;
  lease.phase = LeasePhase::kReceiving;
  return OkStatus();
}

Status KvIntake::Commit(Lease& lease, const KvFrameView& frame) {
  if (lease.phase == LeasePhase::kRunning) return OkStatus();  // the same commit again
  ASSIGN_OR_RETURN(const KvCommit commit, DecodeCommit(frame.payload));
  RETURN_IF_ERROR(CheckCommit(lease, commit));
  RETURN_IF_ERROR(lease.receiver.Commit(commit));
  lease.phase = LeasePhase::kRunning;
  start_(lease, commit.first_token);
  CHECK(!lease.kv.valid());
  return OkStatus();
}

// That the commit continues this very sequence; the receiver checks the rows.
Status KvIntake::CheckCommit(const Lease& lease, const KvCommit& commit) const {
  const auto emitted = static_cast<int64_t>(lease.state.emitted.size());
  const int64_t context = static_cast<int64_t>(lease.state.prompt.size()) + emitted;
  if (commit.tokens != context)
    return DataLoss("KV commit of " + std::to_string(commit.tokens) + " tokens, the sequence has " +
                    std::to_string(context));
  if (commit.first_index != emitted)
    return DataLoss("KV commit: first token at output index " + std::to_string(commit.first_index) +
                    ", wanted " + std::to_string(emitted));
  if (commit.first_token < 0 || commit.first_token >= config_.vocab_size)
    return DataLoss("KV commit: first token " + std::to_string(commit.first_token) +
                    " is not in the vocabulary of " + std::to_string(config_.vocab_size));
  if (FinishAfter(lease.state.params, config_.eos_token_ids, commit.first_token, commit.first_index) !=
      FinishReason::kNone)
    return InvalidArgument("KV commit of a sequence that its first token ends");
  return OkStatus();
}

}  // namespace cachalot

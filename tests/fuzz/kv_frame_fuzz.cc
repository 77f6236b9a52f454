// KV frames back to back, one hand-off. Bit 0 of the first byte: magic, version, length and checksums of
// every frame are put right first, so that what lies behind them is reached.

#include "common/base/bytes.h"
#include "common/kv/transfer_frame.h"
#include "tests/fuzz/kv_fixture.h"

namespace cachalot::fuzz {
namespace {

constexpr size_t kHeader = sizeof(KvFrameHeader);

Bytes Assemble(const KvFrameHeader& header, std::span<const std::byte> payload) {
  Bytes frame = CopyOf(std::as_bytes(std::span(&header, 1)));
  frame.insert(frame.end(), payload.begin(), payload.end());
  return frame;
}

/// What the header says of its payload and itself, made true.
Bytes Repair(std::span<const std::byte> frame) {
  KvFrameHeader header;
  std::memcpy(&header, frame.data(), kHeader);
  const auto payload = frame.subspan(kHeader);
  header.magic = KvFrameHeader::kMagic;
  header.version = kKvStateFormat;
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  header.checksum = KvChecksum(payload);
  header.header_checksum = KvChecksum(std::as_bytes(std::span(&header, 1)).first(kHeader - sizeof(uint64_t)));
  return Assemble(header, payload);
}

void CheckRows(const KvFrameView& frame, KvReceiver& receiver, SequenceKv& kv) {
  const KvFrameHeader& h = frame.header;
  const Bytes before = ContentOf(kv);
  if (const Status placed = receiver.Place(frame); !placed.ok()) {
    CHECK(placed.code() == StatusCode::kDataLoss);
    CHECK(Same(ContentOf(kv), before));
    return;
  }
  const Bytes again = EncodeRows(kv, {h.pool, h.layer, h.first_row, h.rows}, h.lease, h.epoch, h.attempt);
  CHECK(Same(std::span(again).subspan(kHeader), frame.payload));
  if (h.kind == KvFrameKind::kRows && h.reserved0 == 0) CHECK(Same(again, Assemble(h, frame.payload)));
}

void CheckCommit(const KvFrameView& frame, KvReceiver& receiver, SequenceKv& kv) {
  const auto commit = DecodeCommit(frame.payload);
  if (!commit.ok()) {
    CHECK(commit.status().code() == StatusCode::kDataLoss);
    return;
  }
  const Bytes again = EncodeCommit(*commit, frame.header.lease, frame.header.epoch, frame.header.attempt);
  CHECK(Same(std::span(again).subspan(kHeader), frame.payload));
  const Bytes before = ContentOf(kv);
  const int64_t tokens = kv.tokens();
  const Status accepted = receiver.Commit(*commit);
  CHECK(Same(ContentOf(kv), before));
  CHECK(kv.tokens() == (accepted.ok() ? commit->tokens : tokens));
  CHECK(accepted.ok() || accepted.code() == StatusCode::kDataLoss);
}

void CheckVerdict(const KvFrameView& frame) {
  const Status verdict = DecodeVerdict(frame.payload);
  const Bytes again = EncodeVerdict(verdict, frame.header.lease, frame.header.epoch, frame.header.attempt);
  const auto parsed = ParseKvFrame(again);
  CHECK(parsed.ok() && DecodeVerdict(parsed->payload) == verdict);
}

void CheckFrame(std::span<const std::byte> bytes, KvReceiver& receiver, SequenceKv& kv, bool repaired) {
  const auto frame = ParseKvFrame(bytes);
  if (!frame.ok()) {
    CHECK(frame.status().code() == StatusCode::kDataLoss);
    KvFrameHeader header;
    if (repaired) std::memcpy(&header, bytes.data(), kHeader);
    CHECK(!repaired || header.kind < KvFrameKind::kRows || header.kind > KvFrameKind::kVerdict);
    return;
  }
  CHECK(Same(Assemble(frame->header, frame->payload), bytes));
  // Every payload goes to every reader of payloads: none may rely on the kind.
  if (frame->header.kind != KvFrameKind::kCommit) CheckRows(*frame, receiver, kv);
  CheckCommit(*frame, receiver, kv);
  CheckVerdict(*frame);
}

void CheckFrames(std::span<const std::byte> input, bool repair) {
  SequenceKv kv = TinyKv();
  KvReceiver receiver(&kv, kKvTokens);
  for (int frames = 0; frames < 32 && !input.empty(); ++frames) {
    size_t length = input.size();
    if (length >= kHeader) {
      KvFrameHeader header;
      std::memcpy(&header, input.data(), kHeader);
      length = kHeader + std::min<size_t>(header.payload_bytes, length - kHeader);
      if (header.attempt % 16 == 15) receiver.Restart();
    } else if (repair) {
      return;
    }
    const Bytes frame = repair ? Repair(input.first(length)) : CopyOf(input.first(length));
    CheckFrame(frame, receiver, kv, repair);
    input = input.subspan(length);
  }
}

std::string HandOff(int64_t tokens) {
  SequenceKv kv = TinyKv();
  kv.SetTokens(tokens);
  KvCommit commit{tokens, 17, 3, {}};
  std::string frames;
  for (const RowRange& range : HandOffRows(kv.layout(), tokens)) {
    const Bytes frame = EncodeRows(kv, range, 5, 6, 1);
    frames += Text(frame);
    commit.tally.Add(ParseKvFrame(frame)->header);
  }
  return frames + Text(EncodeCommit(commit, 5, 6, 1)) + Text(EncodeVerdict(OkStatus(), 5, 6, 1));
}

}  // namespace

std::vector<Seed> Seeds() {
  const std::string as_is(1, '\2'), repaired(1, '\1');
  SequenceKv kv = TinyKv();
  const std::string rows = Text(EncodeRows(kv, {PoolTag::kCsaKv, 1, 0, 2}, 1, 2, 3));
  return {{"hand_off_9", as_is + HandOff(9)},
          {"hand_off_1", repaired + HandOff(1)},
          {"hand_off_130", repaired + HandOff(130)},
          {"rows_twice", repaired + rows + rows},
          {"rows_follow", repaired + rows + Text(EncodeRows(kv, {PoolTag::kCsaKv, 1, 2, 1}, 1, 2, 3))},
          {"verdict", as_is + Text(EncodeVerdict(DataLoss("wrong"), 1, 2, 3))},
          {"restart", repaired + rows + Text(EncodeRows(kv, {PoolTag::kCsaKv, 1, 0, 2}, 1, 2, 15))}};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto input = cachalot::fuzz::CopyOf(data + 1, size - 1);
  cachalot::fuzz::CheckFrames(input, data[0] & 1);
  return 0;
}

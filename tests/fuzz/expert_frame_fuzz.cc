// One expert frame. The first byte: bit 0, magic, version, length and checksum are put right first; bit 1,
// the service takes bf16.

#include <xxhash.h>

#include <algorithm>
#include <numeric>

#include "common/moe/expert_frame.h"
#include "tests/fuzz/fuzz.h"

namespace cachalot::fuzz {
namespace {

constexpr size_t kHeader = sizeof(ExpertFrameHeader);
constexpr int kHidden = 4, kLayers = 3, kBegin = 2, kEnd = 10, kMaxRows = 8;

ExpertFrameHeader HeaderOf(std::span<const std::byte> frame) {
  ExpertFrameHeader header;
  std::memcpy(&header, frame.data(), kHeader);
  return header;
}

void Repair(Bytes* frame) {
  if (frame->size() < kHeader) return;
  ExpertFrameHeader header = HeaderOf(*frame);
  header.magic = ExpertFrameHeader::kMagic;
  header.version = ExpertFrameHeader::kVersion;
  header.body_bytes = static_cast<uint32_t>(frame->size() - kHeader);
  header.checksum = 0;
  header.checksum = XXH3_64bits_withSeed(frame->data() + kHeader, frame->size() - kHeader,
                                         XXH3_64bits(&header, sizeof(header)));
  std::memcpy(frame->data(), &header, kHeader);
}

bool AnyNan(const float* values, int64_t count) {
  return std::any_of(values, values + count, [](float value) { return value != value; });
}

void CheckReply(const ExpertFrameView& frame) {
  const ExpertFrameHeader& h = frame.header;
  std::vector<float> partials(static_cast<size_t>(h.slots) * h.hidden);
  for (uint32_t slot = 0; slot < h.slots; ++slot)
    ReadReplySlot(frame, slot, partials.data() + slot * h.hidden);
  Bytes again = MakeExpertReply(h);
  SetReplyPartials(again, partials.data());
  SealExpertReply(again);
  const auto parsed = ParseExpertFrame(again);
  CHECK(parsed.ok() && parsed->header.call == h.call && parsed->header.layer == h.layer);
  if (h.wire_type == ExpertWireType::kF32 || !AnyNan(partials.data(), partials.size()))
    CHECK(Same(parsed->body, frame.body) && parsed->header.checksum == h.checksum);
}

void CheckCall(const ExpertFrameView& frame, const ExpertCallLimits& limits) {
  const ExpertFrameHeader& h = frame.header;
  ExpertCallView call;
  if (const Status decoded = DecodeExpertCall(frame, limits, &call); !decoded.ok()) {
    CHECK(decoded.code() == StatusCode::kInvalidArgument);
    return;
  }
  // What an ExpertFfn relies on.
  CHECK(call.assignments.size() == h.assignments && h.rows <= kMaxRows && h.slots <= h.assignments);
  std::vector<int32_t> owner(h.slots, -1);
  for (const ExpertAssignment& a : call.assignments) {
    CHECK(a.expert >= kBegin && a.expert < kEnd && a.row >= 0 && a.row < static_cast<int32_t>(h.rows));
    CHECK(a.slot >= 0 && a.slot < static_cast<int32_t>(h.slots));
    CHECK(owner[a.slot] < 0 || owner[a.slot] == a.row);
    owner[a.slot] = a.row;
  }
  for (int32_t row : owner) CHECK(row >= 0);
  std::vector<int32_t> rows(h.rows);
  std::iota(rows.begin(), rows.end(), 0);
  const Bytes again = EncodeExpertCall(h.call, static_cast<int>(h.layer), call.assignments, rows, h.slots,
                                       call.x, h.hidden, h.wire_type);
  const auto parsed = ParseExpertFrame(again);
  CHECK(parsed.ok());
  if (h.wire_type == ExpertWireType::kF32 || !AnyNan(call.x, int64_t{h.rows} * h.hidden))
    CHECK(Same(parsed->body, frame.body) && parsed->header.checksum == h.checksum);
}

void CheckError(const ExpertFrameView& frame) {
  const Status error = DecodeExpertError(frame);
  CHECK(!error.ok());
  const Bytes again = EncodeExpertError(frame.header.call, frame.header.layer, error);
  const auto parsed = ParseExpertFrame(again);
  CHECK(parsed.ok() && DecodeExpertError(*parsed) == error);
}

void CheckFrame(const Bytes& bytes, bool bf16) {
  const auto frame = ParseExpertFrame(bytes);
  if (!frame.ok()) {
    CHECK(frame.status().code() == StatusCode::kDataLoss);
    return;
  }
  const ExpertCallLimits limits{kLayers, kHidden,  kBegin,
                                kEnd,    kMaxRows, bf16 ? ExpertWireType::kBf16 : ExpertWireType::kF32};
  CheckCall(*frame, limits);
  if (frame->header.kind == ExpertFrameKind::kReply) CheckReply(*frame);
  if (frame->header.kind == ExpertFrameKind::kError) CheckError(*frame);
}

Bytes Call(ExpertWireType type) {
  const std::vector<ExpertAssignment> assignments = {
      {0, 0, 2, .5f}, {1, 2, 2, .25f}, {0, 1, 5, .5f}, {1, 2, 9, .75f}};
  const std::vector<float> x = {1, 2, 3, 4, 5, 6, 7, 8, -1, -2, -3, -4};
  const std::vector<int32_t> rows = {0, 2};
  return EncodeExpertCall(77, 1, assignments, rows, 3, x.data(), kHidden, type);
}

Bytes Reply(ExpertWireType type) {
  const std::vector<float> partials(3 * kHidden, 1.5f);
  Bytes reply = MakeExpertReply(HeaderOf(Call(type)));
  SetReplyPartials(reply, partials.data());
  SealExpertReply(reply);
  return reply;
}

}  // namespace

std::vector<Seed> Seeds() {
  const std::string f32(1, '\1'), bf16(1, '\3'), as_is(1, '\4');
  return {{"call", f32 + Text(Call(ExpertWireType::kF32))},
          {"call_bf16", bf16 + Text(Call(ExpertWireType::kBf16))},
          {"call_as_is", as_is + Text(Call(ExpertWireType::kF32))},
          {"reply", f32 + Text(Reply(ExpertWireType::kF32))},
          {"reply_bf16", bf16 + Text(Reply(ExpertWireType::kBf16))},
          {"error", f32 + Text(EncodeExpertError(5, 2, InvalidArgument("no such layer")))}};
}

}  // namespace cachalot::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  auto frame = cachalot::fuzz::CopyOf(data + 1, size - 1);
  if (data[0] & 1) cachalot::fuzz::Repair(&frame);
  cachalot::fuzz::CheckFrame(frame, data[0] & 2);
  return 0;
}

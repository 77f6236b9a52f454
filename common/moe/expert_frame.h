#pragma once
// Frames between a caller's step thread and an expert service (protos/cachalot/v1/expert.proto): a 48-byte
// header, then the body. Little-endian; values are fp32 in mode exact, bf16 in mode bf16. Pure encoding, no I/O.
//
//   call:  assignments [n] {i32 row, i32 slot, i32 expert, f32 weight}, then x [rows, hidden]
//   reply: partials [slots, hidden]
//   error: i32 status code, message bytes
//
// Rows and slots are numbered inside the frame: a caller sends a service only the rows that meet its experts,
// and one slot for every (row, reduction group) pair that they touch, ascending.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/moe/dispatch_plan.h"

namespace cachalot {

enum class ExpertFrameKind : uint8_t { kCall = 1, kReply = 2, kError = 3 };

/// Type of rows and partials. In mode bf16 both are bf16 values already, so the narrow form loses nothing.
enum class ExpertWireType : uint8_t { kF32 = 0, kBf16 = 1 };

struct ExpertFrameHeader {
  uint32_t magic = kMagic;
  uint16_t version = kVersion;
  ExpertFrameKind kind = ExpertFrameKind::kCall;
  ExpertWireType wire_type = ExpertWireType::kF32;
  uint64_t call = 0;  // chosen by the caller, returned in the reply; 0 in an error about an unreadable frame
  uint32_t layer = 0;
  uint32_t rows = 0;         // error: 0
  uint32_t assignments = 0;  // reply and error: 0
  uint32_t slots = 0;        // error: 0
  uint32_t hidden = 0;       // error: 0
  uint32_t body_bytes = 0;
  uint64_t checksum = 0;  // XXH3-64 of header (this field 0) and body: a wrong bit would become a wrong token

  static constexpr uint32_t kMagic = 0x31584543;  // "CEX1"
  static constexpr uint16_t kVersion = 1;
};
static_assert(sizeof(ExpertFrameHeader) == 48);
static_assert(sizeof(ExpertAssignment) == 16, "the wire form of an assignment is its memory");

/// The largest error message sent; longer ones are cut.
inline constexpr size_t kMaxExpertError = 1024;

struct ExpertFrameView {
  ExpertFrameHeader header;
  std::span<const std::byte> body;
};

/// Splits a frame and checks what can be checked without knowing the model: DATA_LOSS names the field that is
/// wrong (magic, version, kind, wire type, counts, length, checksum).
StatusOr<ExpertFrameView> ParseExpertFrame(std::span<const std::byte> frame);

/// Call frame number `call` for `layer`. Row i of the frame is row rows[i] of `x` [*, hidden]; the
/// assignments' rows and slots are numbered inside the frame, ascending (expert, row).
std::vector<std::byte> EncodeExpertCall(uint64_t call, int layer,
                                        std::span<const ExpertAssignment> assignments,
                                        std::span<const int32_t> rows, int64_t slots, const float* x,
                                        int64_t hidden, ExpertWireType wire_type = ExpertWireType::kF32);

/// A call's body. `x` points into the frame or, for bf16 rows, into `widened`.
struct ExpertCallView {
  std::vector<ExpertAssignment> assignments;
  std::vector<float> widened;
  const float* x = nullptr;  // [rows, hidden]
};

/// What makes the frames between a caller and one shard long.
struct ExpertFrameShape {
  int64_t hidden = 0;
  int64_t experts_per_row = 0;                  // that a row meets in all shards together
  int64_t shard_experts = 0, shard_groups = 0;  // that this shard has
  ExpertWireType wire_type = ExpertWireType::kF32;
};

/// Bytes of whole frames.
struct ExpertFrameBytes {
  int64_t call = 0, reply = 0;
};

/// The longest call of `rows` rows and the longest reply to it: every row meets as many of the shard's
/// experts, and of its groups, as it can.
ExpertFrameBytes LongestExpertFrames(const ExpertFrameShape& shape, int64_t rows);

/// What a service accepts.
struct ExpertCallLimits {
  int layers = 0;
  int64_t hidden = 0;
  int expert_begin = 0, expert_end = 0;
  int64_t max_rows = 0;
  ExpertWireType wire_type = ExpertWireType::kF32;
};

/// INVALID_ARGUMENT names what is wrong: an unknown layer, another width, more rows than allowed, an expert
/// outside the shard, assignments out of order or of a row or slot that is not there, a slot that belongs to
/// two rows or to nobody. After OK an ExpertFfn may run the call as it is.
Status DecodeExpertCall(const ExpertFrameView& frame, const ExpertCallLimits& limits, ExpertCallView* call);

/// A reply to `call` whose partials are still to be written, at ReplyPartials; then SealExpertReply.
std::vector<std::byte> MakeExpertReply(const ExpertFrameHeader& call);
/// The partials' memory of an fp32 reply.
float* ReplyPartials(std::span<std::byte> reply);
/// Copies partials [slots, hidden] into a reply of either type.
void SetReplyPartials(std::span<std::byte> reply, const float* partials);
/// Slot `slot` of a reply that ParseExpertFrame accepted, as fp32 values out[0, hidden).
void ReadReplySlot(const ExpertFrameView& reply, int64_t slot, float* out);
void SealExpertReply(std::span<std::byte> reply);

/// `error` is not OK.
std::vector<std::byte> EncodeExpertError(uint64_t call, uint32_t layer, const Status& error);
/// The error inside an error frame's body; DATA_LOSS when malformed.
Status DecodeExpertError(const ExpertFrameView& frame);

}  // namespace cachalot

#pragma once
// Frames between a caller's step thread and an expert service (protos/cachalot/v1/expert.proto): a 48-byte header, then
// the body. Little-endian, fp32 in mode exact. Pure encoding, no I/O.
//
//   call:  assignments [n] {i32 row, i32 slot, i32 expert, f32 weight}, then x [rows, hidden] f32
//   reply: partials [slots, hidden] f32
//   error: i32 status code, message bytes
//
// Rows and slots are numbered inside the frame: a caller sends a service only the rows that meet its experts, and one
// slot for every (row, reduction group) pair that they touch, ascending.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/base/status.h"
#include "common/moe/dispatch_plan.h"

namespace cachalot {

enum class ExpertFrameKind : uint8_t { kCall = 1, kReply = 2, kError = 3 };

struct ExpertFrameHeader {
  uint32_t magic = kMagic;
  uint16_t version = 1;
  ExpertFrameKind kind = ExpertFrameKind::kCall;
  uint8_t wire_type = 0;  // 0: fp32
  uint64_t call = 0;      // chosen by the caller, returned in the reply
  uint32_t layer = 0;
  uint32_t rows = 0;
  uint32_t assignments = 0;
  uint32_t slots = 0;
  uint32_t hidden = 0;
  uint32_t body_bytes = 0;
  uint64_t reserved = 0;

  static constexpr uint32_t kMagic = 0x31584543;  // "CEX1"
};
static_assert(sizeof(ExpertFrameHeader) == 48);

}  // namespace cachalot

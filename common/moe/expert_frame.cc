#include "common/moe/expert_frame.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "common/base/bytes.h"
#include "common/base/check.h"
#include "common/tensor/dtype.h"

namespace cachalot {
namespace {

constexpr size_t kHeaderBytes = sizeof(ExpertFrameHeader);

uint64_t ValueBytes(ExpertWireType type) { return type == ExpertWireType::kBf16 ? 2 : 4; }

void Narrow(const float* values, int64_t count, ExpertWireType type, std::byte* out) {
  if (type == ExpertWireType::kF32) {
    std::memcpy(out, values, count * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = FloatToBF16(values[i]);
    std::memcpy(out + 2 * i, &bits, 2);
  }
}

void Widen(const std::byte* bytes, int64_t count, ExpertWireType type, float* out) {
  if (type == ExpertWireType::kF32) {
    std::memcpy(out, bytes, count * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, bytes + 2 * i, 2);
    out[i] = BF16ToFloat(bits);
  }
}

uint64_t Checksum(ExpertFrameHeader header, std::span<const std::byte> body) {
  header.checksum = 0;
  return XXH3_64bits_withSeed(body.data(), body.size(), XXH3_64bits(&header, sizeof(header)));
}

void Seal(ExpertFrameHeader header, std::span<std::byte> frame) {
  header.body_bytes = static_cast<uint32_t>(frame.size() - kHeaderBytes);
  header.checksum = Checksum(header, frame.subspan(kHeaderBytes));
  std::memcpy(frame.data(), &header, kHeaderBytes);
}

/// Bytes of the body that the header's counts make, in 64 bits: no count can make it wrap.
uint64_t ExpectedBody(const ExpertFrameHeader& h) {
  if (h.kind == ExpertFrameKind::kReply) return uint64_t{h.slots} * h.hidden * ValueBytes(h.wire_type);
  return uint64_t{h.assignments} * sizeof(ExpertAssignment) + uint64_t{h.rows} * h.hidden * ValueBytes(h.wire_type);
}

Status CheckCounts(const ExpertFrameHeader& h) {
  const bool call = h.kind == ExpertFrameKind::kCall, error = h.kind == ExpertFrameKind::kError;
  if (!call && h.assignments != 0) return DataLoss("expert frame: assignments in a frame that is no call");
  if (error) {
    if (h.rows != 0 || h.slots != 0 || h.hidden != 0) return DataLoss("expert frame: an error with rows");
    if (h.body_bytes < sizeof(int32_t) || h.body_bytes > sizeof(int32_t) + kMaxExpertError)
      return DataLoss("expert frame: an error of " + std::to_string(h.body_bytes) + " bytes");
    return OkStatus();
  }
  if (h.rows == 0 || h.slots == 0 || h.hidden == 0 || (call && h.assignments == 0))
    return DataLoss("expert frame: no rows, slots, assignments or width");
  if (ExpectedBody(h) != h.body_bytes)
    return DataLoss("expert frame: its counts make a body of " + std::to_string(ExpectedBody(h)) +
                    " bytes, the header says " + std::to_string(h.body_bytes));
  return OkStatus();
}

std::string Range(int64_t begin, int64_t end) {
  return "[" + std::to_string(begin) + ", " + std::to_string(end) + ")";
}

Status CheckAssignments(const ExpertFrameHeader& h, const ExpertCallLimits& limits,
                        std::span<const ExpertAssignment> assignments) {
  std::vector<int32_t> row_of_slot(h.slots, -1);
  uint32_t slots_touched = 0;
  for (size_t i = 0; i < assignments.size(); ++i) {
    const ExpertAssignment& a = assignments[i];
    const std::string which = "assignment " + std::to_string(i);
    if (a.expert < limits.expert_begin || a.expert >= limits.expert_end)
      return InvalidArgument(which + ": expert " + std::to_string(a.expert) + " is not in this shard's " +
                             Range(limits.expert_begin, limits.expert_end));
    if (a.row < 0 || static_cast<uint32_t>(a.row) >= h.rows)
      return InvalidArgument(which + ": row " + std::to_string(a.row) + " is not in " + Range(0, h.rows));
    if (a.slot < 0 || static_cast<uint32_t>(a.slot) >= h.slots)
      return InvalidArgument(which + ": slot " + std::to_string(a.slot) + " is not in " + Range(0, h.slots));
    if (i > 0 && std::tie(assignments[i - 1].expert, assignments[i - 1].row) >= std::tie(a.expert, a.row))
      return InvalidArgument(which + ": not in ascending (expert, row)");
    int32_t& owner = row_of_slot[a.slot];
    if (owner < 0) ++slots_touched;
    if (owner >= 0 && owner != a.row) return InvalidArgument(which + ": a slot of two rows");
    owner = a.row;
  }
  // A slot that nothing touches would send back whatever the memory held.
  if (slots_touched != h.slots)
    return InvalidArgument(std::to_string(h.slots - slots_touched) + " slots belong to no assignment");
  return OkStatus();
}

}  // namespace

StatusOr<ExpertFrameView> ParseExpertFrame(std::span<const std::byte> frame) {
  ByteReader reader(frame);
  ExpertFrameView view{reader.Read<ExpertFrameHeader>(), {}};
  const ExpertFrameHeader& h = view.header;
  if (!reader.ok())
    return DataLoss("expert frame of " + std::to_string(frame.size()) + " bytes: shorter than its header");
  if (h.magic != ExpertFrameHeader::kMagic) return DataLoss("expert frame: wrong magic");
  if (h.version != ExpertFrameHeader::kVersion)
    return DataLoss("expert frame: version " + std::to_string(h.version) + ", wanted " +
                    std::to_string(ExpertFrameHeader::kVersion));
  if (h.kind < ExpertFrameKind::kCall || h.kind > ExpertFrameKind::kError)
    return DataLoss("expert frame: unknown kind " + std::to_string(static_cast<int>(h.kind)));
  if (h.wire_type > ExpertWireType::kBf16)
    return DataLoss("expert frame: wire type " + std::to_string(static_cast<int>(h.wire_type)) +
                    ", wanted 0 (fp32) or 1 (bf16)");
  if (h.body_bytes != reader.remaining())
    return DataLoss("expert frame: body of " + std::to_string(reader.remaining()) + " bytes, header says " +
                    std::to_string(h.body_bytes));
  RETURN_IF_ERROR(CheckCounts(h));
  view.body = reader.Take(h.body_bytes);
  if (Checksum(h, view.body) != h.checksum) return DataLoss("expert frame: wrong checksum");
  return view;
}

std::vector<std::byte> EncodeExpertCall(uint64_t call, int layer,
                                        std::span<const ExpertAssignment> assignments,
                                        std::span<const int32_t> rows, int64_t slots, const float* x,
                                        int64_t hidden, ExpertWireType wire_type) {
  ExpertFrameHeader header;
  header.wire_type = wire_type;
  header.call = call;
  header.layer = static_cast<uint32_t>(layer);
  header.rows = static_cast<uint32_t>(rows.size());
  header.assignments = static_cast<uint32_t>(assignments.size());
  header.slots = static_cast<uint32_t>(slots);
  header.hidden = static_cast<uint32_t>(hidden);
  const uint64_t body = ExpectedBody(header);
  CHECK_MSG(body <= UINT32_MAX, "an expert call of " + std::to_string(body) + " bytes");
  std::vector<std::byte> frame(kHeaderBytes + body);
  std::byte* at = frame.data() + kHeaderBytes;
  std::memcpy(at, assignments.data(), assignments.size_bytes());
  at += assignments.size_bytes();
  for (int32_t row : rows) {
    Narrow(x + row * hidden, hidden, wire_type, at);
    at += hidden * ValueBytes(wire_type);
  }
  Seal(header, frame);
  return frame;
}

ExpertFrameBytes LongestExpertFrames(const ExpertFrameShape& shape, int64_t rows) {
  const int64_t header = kHeaderBytes, assignment = sizeof(ExpertAssignment);
  const int64_t row = shape.hidden * static_cast<int64_t>(ValueBytes(shape.wire_type));
  const int64_t assignments = std::min(shape.experts_per_row, shape.shard_experts);
  const int64_t slots = std::min(assignments, shape.shard_groups);
  return {.call = header + rows * (assignments * assignment + row), .reply = header + rows * slots * row};
}

Status DecodeExpertCall(const ExpertFrameView& frame, const ExpertCallLimits& limits, ExpertCallView* call) {
  const ExpertFrameHeader& h = frame.header;
  if (h.kind != ExpertFrameKind::kCall) return InvalidArgument("not a call");
  if (h.layer >= static_cast<uint32_t>(limits.layers))
    return InvalidArgument("layer " + std::to_string(h.layer) + " of a model with " +
                           std::to_string(limits.layers));
  if (h.wire_type != limits.wire_type)
    return InvalidArgument("wire type " + std::to_string(static_cast<int>(h.wire_type)) + ", this service takes " +
                           std::to_string(static_cast<int>(limits.wire_type)));
  if (h.hidden != limits.hidden)
    return InvalidArgument("rows of " + std::to_string(h.hidden) + " values, wanted " +
                           std::to_string(limits.hidden));
  if (h.rows > limits.max_rows)
    return InvalidArgument(std::to_string(h.rows) + " rows in one call, at most " +
                           std::to_string(limits.max_rows));
  if (h.slots > h.assignments)
    return InvalidArgument(std::to_string(h.slots) + " slots for " + std::to_string(h.assignments) +
                           " assignments");
  ByteReader reader(frame.body);
  const auto assignments = reader.Take(h.assignments * sizeof(ExpertAssignment));
  const auto x = reader.Take(reader.remaining());
  call->assignments.resize(h.assignments);
  std::memcpy(call->assignments.data(), assignments.data(), assignments.size());
  if (h.wire_type == ExpertWireType::kF32) {
    call->x = reinterpret_cast<const float*>(x.data());
  } else {
    call->widened.resize(h.rows * h.hidden);
    Widen(x.data(), h.rows * h.hidden, h.wire_type, call->widened.data());
    call->x = call->widened.data();
  }
  CHECK_MSG(reinterpret_cast<uintptr_t>(call->x) % alignof(float) == 0, "a frame in unaligned memory");
  return CheckAssignments(h, limits, call->assignments);
}

std::vector<std::byte> MakeExpertReply(const ExpertFrameHeader& call) {
  ExpertFrameHeader header = call;
  header.kind = ExpertFrameKind::kReply;
  header.assignments = 0;
  std::vector<std::byte> reply(kHeaderBytes + ExpectedBody(header));
  std::memcpy(reply.data(), &header, kHeaderBytes);
  return reply;
}

float* ReplyPartials(std::span<std::byte> reply) {
  return reinterpret_cast<float*>(reply.data() + kHeaderBytes);
}

void SetReplyPartials(std::span<std::byte> reply, const float* partials) {
  ExpertFrameHeader header;
  std::memcpy(&header, reply.data(), kHeaderBytes);
  Narrow(partials, int64_t{header.slots} * header.hidden, header.wire_type, reply.data() + kHeaderBytes);
}

void ReadReplySlot(const ExpertFrameView& reply, int64_t slot, float* out) {
  const ExpertFrameHeader& h = reply.header;
  Widen(reply.body.data() + slot * h.hidden * ValueBytes(h.wire_type), h.hidden, h.wire_type, out);
}

void SealExpertReply(std::span<std::byte> reply) {
  ExpertFrameHeader header;
  std::memcpy(&header, reply.data(), kHeaderBytes);
  Seal(header, reply);
}

std::vector<std::byte> EncodeExpertError(uint64_t call, uint32_t layer, const Status& error) {
  CHECK(!error.ok());
  const std::string message = StatusMessage(error).substr(0, kMaxExpertError);
  const auto code = static_cast<int32_t>(error.code());
  std::vector<std::byte> frame(kHeaderBytes + sizeof(code) + message.size());
  std::memcpy(frame.data() + kHeaderBytes, &code, sizeof(code));
  std::memcpy(frame.data() + kHeaderBytes + sizeof(code), message.data(), message.size());
  ExpertFrameHeader header;
  header.kind = ExpertFrameKind::kError;
  header.call = call;
  header.layer = layer;
  Seal(header, frame);
  return frame;
}

Status DecodeExpertError(const ExpertFrameView& frame) {
  ByteReader reader(frame.body);
  const auto code = reader.Read<int32_t>();
  const auto text = reader.Take(reader.remaining());
  if (!reader.ok() || code < 1 || code > 16) return DataLoss("expert frame: malformed error");
  return MakeStatus(static_cast<StatusCode>(code), {reinterpret_cast<const char*>(text.data()), text.size()});
}

}  // namespace cachalot

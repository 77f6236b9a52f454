#pragma once
// Raw frames without needless copies. gRPC hands out received messages in pieces of up to 64 KiB and never
// receives into memory of ours: so frames are read piece by piece, straight to where the bytes belong.

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"

namespace cachalot::rpc {

/// Puts a frame together: `FrameBuilder().Copy(header).Share(rows, owner).Build()`.
class FrameBuilder {
 public:
  /// Copies now. Neighbouring copies form one slice; right below about 1 KiB.
  FrameBuilder& Copy(std::span<const std::byte> bytes);
  /// Sends `bytes` from where they are and holds `owner` until gRPC has let go of them, which may be later
  /// than the end of the write and on another thread. Until then they must not change.
  FrameBuilder& Share(std::span<const std::byte> bytes, std::shared_ptr<const void> owner);
  /// As Share; `release` runs once, on any thread, when gRPC has let go (also if the frame is never sent).
  FrameBuilder& Share(std::span<const std::byte> bytes, std::function<void()> release);
  /// The builder is empty afterwards.
  grpc::ByteBuffer Build();

 private:
  void FlushCopies();
  std::vector<std::byte> copies_;
  std::vector<grpc::Slice> slices_;
};

/// One copied frame, for small messages and tests.
grpc::ByteBuffer CopyFrame(std::span<const std::byte> bytes);

/// Reads a frame front to back without flattening it. Holds references to the frame's slices.
/// Reads or refuses: once something ran past the end, ok() stays false and nothing more is given.
class FrameCursor {
 public:
  explicit FrameCursor(const grpc::ByteBuffer& frame);

  /// Copies the next bytes to `to`, whatever slices they lie in.
  bool Read(std::span<std::byte> to);
  template <typename T>
  bool Read(T* value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return Read(std::as_writable_bytes(std::span(value, 1)));
  }
  /// Calls `visit` with each contiguous piece of the next `count` bytes, in order: checksums, scatter.
  bool Visit(size_t count, const std::function<void(std::span<const std::byte>)>& visit);
  bool Skip(size_t count);

  size_t remaining() const { return remaining_; }
  bool ok() const { return ok_; }

 private:
  std::vector<grpc::Slice> slices_;
  size_t slice_ = 0, at_ = 0, remaining_ = 0;
  bool ok_ = true;
};

}  // namespace cachalot::rpc

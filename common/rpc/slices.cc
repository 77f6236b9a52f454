#include "common/rpc/slices.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace cachalot::rpc {

FrameBuilder& FrameBuilder::Copy(std::span<const std::byte> bytes) {
  copies_.insert(copies_.end(), bytes.begin(), bytes.end());
  return *this;
}

FrameBuilder& FrameBuilder::Share(std::span<const std::byte> bytes, std::shared_ptr<const void> owner) {
  return Share(bytes, [owner = std::move(owner)]() mutable { owner.reset(); });
}

FrameBuilder& FrameBuilder::Share(std::span<const std::byte> bytes, std::function<void()> release) {
  FlushCopies();
  auto* held = new std::function<void()>(std::move(release));
  const auto destroy = [](void* pointer) {
    auto* release_now = static_cast<std::function<void()>*>(pointer);
    (*release_now)();
    delete release_now;
  };
  if (bytes.empty()) {  // an empty slice never calls back
    destroy(held);
    return *this;
  }
  slices_.emplace_back(const_cast<std::byte*>(bytes.data()), bytes.size(), destroy, held);
  return *this;
}

void FrameBuilder::FlushCopies() {
  if (copies_.empty()) return;
  slices_.emplace_back(copies_.data(), copies_.size());
  copies_.clear();
}

grpc::ByteBuffer FrameBuilder::Build() {
  FlushCopies();
  grpc::ByteBuffer frame(slices_.data(), slices_.size());
  slices_.clear();
  return frame;
}

grpc::ByteBuffer CopyFrame(std::span<const std::byte> bytes) {
  grpc::Slice slice(bytes.data(), bytes.size());
  return grpc::ByteBuffer(&slice, 1);
}

FrameCursor::FrameCursor(const grpc::ByteBuffer& frame) {
  ok_ = frame.Dump(&slices_).ok();
  for (const grpc::Slice& slice : slices_) remaining_ += slice.size();
}

bool FrameCursor::Read(std::span<std::byte> to) {
  std::byte* out = to.data();
  return Visit(to.size(), [&out](std::span<const std::byte> piece) {
    std::memcpy(out, piece.data(), piece.size());
    out += piece.size();
  });
}

bool FrameCursor::Skip(size_t count) {
  return Visit(count, [](std::span<const std::byte>) {});
}

bool FrameCursor::Visit(size_t count, const std::function<void(std::span<const std::byte>)>& visit) {
  ok_ = ok_ && count <= remaining_;
  if (!ok_) return false;
  remaining_ -= count;
  while (count > 0) {
    const grpc::Slice& slice = slices_[slice_];
    const size_t piece = std::min(count, slice.size() - at_);
    if (piece > 0) visit({reinterpret_cast<const std::byte*>(slice.begin()) + at_, piece});
    at_ += piece;
    count -= piece;
    if (at_ == slice.size()) {
      ++slice_;
      at_ = 0;
    }
  }
  return true;
}

}  // namespace cachalot::rpc

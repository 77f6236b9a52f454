#include "common/rpc/slices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "common/rpc/error_map.h"

namespace cachalot::rpc {
namespace {

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string Text(std::vector<std::byte> bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

TEST(Frame, CopiesJoinAndSharesStayWhereTheyAre) {
  auto owner = std::make_shared<std::string>(100'000, 'x');
  std::weak_ptr<std::string> watch = owner;
  grpc::ByteBuffer frame =
      FrameBuilder().Copy(Bytes("he")).Copy(Bytes("ad")).Share(Bytes(*owner), owner).Build();
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(frame.Dump(&slices).ok());
  ASSERT_EQ(slices.size(), 2u);
  EXPECT_EQ(slices[1].begin(), reinterpret_cast<const uint8_t*>(owner->data()));
  owner.reset();
  EXPECT_FALSE(watch.expired());
  slices.clear();
  frame.Clear();
  EXPECT_TRUE(watch.expired());
}

TEST(Frame, AnEmptyShareIsReleasedAtOnce) {
  int released = 0;
  grpc::ByteBuffer frame = FrameBuilder().Share({}, [&] { ++released; }).Build();
  EXPECT_EQ(released, 1);
  EXPECT_EQ(frame.Length(), 0u);
}

TEST(Frame, TheCursorReadsAcrossSlices) {
  // Pieces that are too long for gRPC to join them.
  std::vector<grpc::Slice> slices;
  for (const auto& [count, fill] : {std::pair(200, 'a'), {300, 'b'}, {400, 'c'}}) {
    slices.emplace_back(std::string(count, fill));
  }
  const grpc::ByteBuffer frame(slices.data(), slices.size());
  FrameCursor cursor(frame);
  EXPECT_EQ(cursor.remaining(), 900u);
  std::vector<std::byte> head(250);
  EXPECT_TRUE(cursor.Read(std::span(head)));
  EXPECT_EQ(Text(head), std::string(200, 'a') + std::string(50, 'b'));
  EXPECT_TRUE(cursor.Skip(200));
  std::vector<std::string> pieces;
  EXPECT_TRUE(cursor.Visit(450, [&](std::span<const std::byte> piece) {
    pieces.push_back(Text({piece.begin(), piece.end()}));
  }));
  EXPECT_THAT(pieces, testing::ElementsAre(std::string(50, 'b'), std::string(400, 'c')));
  EXPECT_EQ(cursor.remaining(), 0u);
  EXPECT_TRUE(cursor.ok());
}

TEST(Frame, TheCursorRefusesToRunPastTheEnd) {
  const grpc::ByteBuffer frame = CopyFrame(Bytes("abc"));
  FrameCursor cursor(frame);
  uint32_t value = 5;
  EXPECT_FALSE(cursor.Read(&value));
  EXPECT_EQ(value, 5u);
  uint8_t byte = 0;
  EXPECT_FALSE(cursor.Read(&byte));  // once refused, always refused
  EXPECT_FALSE(cursor.ok());
  FrameCursor empty{grpc::ByteBuffer()};
  EXPECT_FALSE(empty.Read(&byte));
}

TEST(ErrorMap, KeepsCodesAndMessagesBothWays) {
  for (int code = 0; code <= 16; ++code) {
    const Status status = MakeStatus(static_cast<StatusCode>(code), code == 0 ? "" : "because");
    EXPECT_EQ(static_cast<int>(ToGrpc(status).error_code()), code);
    EXPECT_EQ(FromGrpc(ToGrpc(status), true), status);
    const bool grpcs = code == 2 || code == 13;  // UNKNOWN, INTERNAL
    EXPECT_EQ(FromGrpc(ToGrpc(status), false), grpcs ? Unavailable("because") : status);
  }
  EXPECT_LE(ToGrpc(Internal(std::string(100'000, 'x'))).error_message().size(), 2000u);
  EXPECT_TRUE(IsRetryable(Unavailable("")));
  EXPECT_FALSE(IsRetryable(InvalidArgument("")));
  EXPECT_FALSE(IsRetryable(OkStatus()));
}

}  // namespace
}  // namespace cachalot::rpc

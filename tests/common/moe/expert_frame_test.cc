#include "common/moe/expert_frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstring>
#include <numeric>

namespace cachalot {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kHidden = 4;
constexpr ExpertCallLimits kLimits{
    .layers = 3, .hidden = kHidden, .expert_begin = 4, .expert_end = 8, .max_rows = 16};

// Rows 5 and 9 of the caller; row 0 of the frame meets experts 4 and 6 (two groups), row 1 expert 6.
const std::vector<ExpertAssignment> kAssignments = {{0, 0, 4, 0.5f}, {0, 1, 6, 0.25f}, {1, 2, 6, 1.0f}};

std::vector<float> Rows() {
  std::vector<float> x(10 * kHidden);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  return x;
}

std::vector<std::byte> Call(std::vector<ExpertAssignment> assignments = kAssignments, int layer = 1,
                            int64_t slots = 3, int64_t hidden = kHidden) {
  const auto x = Rows();
  const std::vector<int32_t> rows = {5, 9};
  return EncodeExpertCall(77, layer, assignments, rows, slots, x.data(), hidden);
}

// The same frame with other header values and a checksum that fits them.
template <typename Change>
std::vector<std::byte> Changed(std::vector<std::byte> frame, Change change) {
  ExpertFrameHeader header;
  std::memcpy(&header, frame.data(), sizeof(header));
  change(header);
  header.checksum = 0;
  header.checksum = XXH3_64bits_withSeed(frame.data() + sizeof(header), frame.size() - sizeof(header),
                                         XXH3_64bits(&header, sizeof(header)));
  std::memcpy(frame.data(), &header, sizeof(header));
  return frame;
}

Status Parsed(const std::vector<std::byte>& frame) { return ParseExpertFrame(frame).status(); }

Status Decoded(const std::vector<std::byte>& frame, ExpertCallLimits limits = kLimits) {
  ExpertCallView call;
  const auto view = ParseExpertFrame(frame);
  return view.ok() ? DecodeExpertCall(*view, limits, &call) : view.status();
}

void ExpectRefused(const Status& status, StatusCode code, const char* what) {
  EXPECT_EQ(status.code(), code) << what;
  EXPECT_THAT(StatusMessage(status), HasSubstr(what));
}

TEST(ExpertFrame, ACallComesBackAsItWas) {
  const auto frame = Call();
  const auto view = ParseExpertFrame(frame);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->header.call, 77u);
  EXPECT_EQ(view->header.layer, 1u);
  ExpertCallView call;
  ASSERT_TRUE(DecodeExpertCall(*view, kLimits, &call).ok());
  ASSERT_EQ(call.assignments.size(), 3u);
  EXPECT_EQ(0, std::memcmp(call.assignments.data(), kAssignments.data(), 3 * sizeof(ExpertAssignment)));
  const auto x = Rows();
  EXPECT_EQ(0, std::memcmp(call.x, x.data() + 5 * kHidden, kHidden * sizeof(float)));
  EXPECT_EQ(0, std::memcmp(call.x + kHidden, x.data() + 9 * kHidden, kHidden * sizeof(float)));
}

TEST(ExpertFrame, AReplyCarriesThePartials) {
  const auto frame = Call();
  auto reply = MakeExpertReply(ParseExpertFrame(frame)->header);
  for (int i = 0; i < 3 * kHidden; ++i) ReplyPartials(reply)[i] = static_cast<float>(i);
  SealExpertReply(reply);
  const auto view = ParseExpertFrame(reply);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->header.kind, ExpertFrameKind::kReply);
  EXPECT_EQ(view->header.call, 77u);
  EXPECT_EQ(view->header.slots, 3u);
  ASSERT_EQ(view->body.size(), 3 * kHidden * sizeof(float));
  float last;
  std::memcpy(&last, view->body.data() + view->body.size() - sizeof(last), sizeof(last));
  EXPECT_EQ(last, 11.0f);
}

// Every row meets `experts` experts in `groups` groups.
std::vector<std::byte> FullCall(int rows, int experts, int groups, ExpertWireType type) {
  std::vector<ExpertAssignment> assignments;
  for (int e = 0; e < experts; ++e)
    for (int r = 0; r < rows; ++r) assignments.push_back({r, r * groups + e * groups / experts, e, 1.0f});
  const std::vector<float> x(rows * kHidden);
  std::vector<int32_t> all(rows);
  std::iota(all.begin(), all.end(), 0);
  return EncodeExpertCall(1, 0, assignments, all, int64_t{rows} * groups, x.data(), kHidden, type);
}

TEST(ExpertFrame, TheLongestFramesAreThoseOfRowsThatMeetAllTheyCan) {
  const struct {
    int per_row, experts, groups;  // what a row may meet, what the shard has
    int met, met_groups;
  } cases[] = {{6, 256, 8, 6, 6}, {6, 64, 2, 6, 2}, {6, 4, 4, 4, 4}, {4, 2, 1, 2, 1}, {2, 16, 8, 2, 2}};
  for (const auto type : {ExpertWireType::kF32, ExpertWireType::kBf16}) {
    for (const auto& c : cases) {
      const auto bytes = LongestExpertFrames({kHidden, c.per_row, c.experts, c.groups, type}, 7);
      const auto call = FullCall(7, c.met, c.met_groups, type);
      EXPECT_EQ(bytes.call, static_cast<int64_t>(call.size())) << c.experts;
      const auto view = ParseExpertFrame(call);
      ASSERT_TRUE(view.ok()) << view.status();
      EXPECT_EQ(bytes.reply, static_cast<int64_t>(MakeExpertReply(view->header).size())) << c.experts;
    }
  }
  // The longest that flags allow, of a large model: no count wraps.
  const auto extreme = LongestExpertFrames({7168, 8, 384, 8}, 1 << 20);
  EXPECT_EQ(extreme.call, 48 + (int64_t{1} << 20) * (8 * 16 + 7168 * 4));
  EXPECT_EQ(extreme.reply, 48 + (int64_t{1} << 20) * (8 * 7168 * 4));
}

TEST(ExpertFrame, AnErrorCarriesItsStatus) {
  const auto frame = EncodeExpertError(5, 2, InvalidArgument("no such expert"));
  const auto view = ParseExpertFrame(frame);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->header.kind, ExpertFrameKind::kError);
  EXPECT_EQ(view->header.call, 5u);
  ExpectRefused(DecodeExpertError(*view), StatusCode::kInvalidArgument, "no such expert");
  const auto long_frame = EncodeExpertError(5, 2, Internal(std::string(100000, 'x')));
  EXPECT_LE(long_frame.size(), sizeof(ExpertFrameHeader) + 4 + kMaxExpertError);
  EXPECT_TRUE(Parsed(long_frame).ok());
}

TEST(ExpertFrame, EveryDamagedBitIsNoticed) {
  auto frame = Call();
  for (size_t byte = 0; byte < frame.size(); ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      frame[byte] ^= std::byte(1 << bit);
      EXPECT_EQ(Parsed(frame).code(), StatusCode::kDataLoss) << "byte " << byte << " bit " << bit;
      frame[byte] ^= std::byte(1 << bit);
    }
  }
  EXPECT_TRUE(Parsed(frame).ok());
}

TEST(ExpertFrame, EveryTruncationIsNoticed) {
  auto frame = Call();
  const auto whole = frame;
  while (!frame.empty()) {
    frame.pop_back();
    EXPECT_EQ(Parsed(frame).code(), StatusCode::kDataLoss) << frame.size();
  }
  frame = whole;
  frame.push_back(std::byte{0});
  ExpectRefused(Parsed(frame), StatusCode::kDataLoss, "body of");
}

TEST(ExpertFrame, EveryWrongHeaderFieldIsNamed) {
  using H = ExpertFrameHeader;
  const auto frame = Call();
  const auto refused = [&](auto change, const char* what) {
    ExpectRefused(Parsed(Changed(frame, change)), StatusCode::kDataLoss, what);
  };
  refused([](H& h) { h.magic = 1; }, "magic");
  refused([](H& h) { h.version = 2; }, "version 2");
  refused([](H& h) { h.kind = static_cast<ExpertFrameKind>(0); }, "kind 0");
  refused([](H& h) { h.kind = static_cast<ExpertFrameKind>(4); }, "kind 4");
  refused([](H& h) { h.kind = ExpertFrameKind::kReply; }, "no call");
  refused([](H& h) { h.kind = ExpertFrameKind::kError, h.assignments = 0; }, "an error with rows");
  refused([](H& h) { h.wire_type = static_cast<ExpertWireType>(2); }, "wire type 2");
  refused([](H& h) { h.rows = 3; }, "counts");
  refused([](H& h) { h.rows = 0; }, "no rows");
  refused([](H& h) { h.slots = 0; }, "no rows");
  refused([](H& h) { h.hidden = 5; }, "counts");
  refused([](H& h) { h.hidden = 0; }, "no rows");
  refused([](H& h) { h.assignments = 4; }, "counts");
  refused([](H& h) { h.assignments = 0; }, "no rows");
  refused([](H& h) { h.body_bytes -= 1; }, "header says");
  // Counts whose product does not fit into 32 bits must not wrap round to the right length.
  refused([](H& h) { h.rows = 0x80000000u, h.hidden = 0x80000000u; }, "counts");
}

TEST(ExpertFrame, AnErrorFrameOfWrongSizeOrCodeIsRefused) {
  const auto frame = EncodeExpertError(5, 2, InvalidArgument("x"));
  const auto ok_code = Changed(frame, [](ExpertFrameHeader&) {});
  EXPECT_TRUE(Parsed(ok_code).ok());
  auto bad_code = frame;
  bad_code[sizeof(ExpertFrameHeader)] = std::byte{99};
  bad_code = Changed(bad_code, [](ExpertFrameHeader&) {});
  EXPECT_EQ(DecodeExpertError(*ParseExpertFrame(bad_code)).code(), StatusCode::kDataLoss);
  auto small = frame;
  small.resize(sizeof(ExpertFrameHeader) + 3);
  small = Changed(small, [](ExpertFrameHeader& h) { h.body_bytes = 3; });
  ExpectRefused(Parsed(small), StatusCode::kDataLoss, "an error of 3 bytes");
}

TEST(ExpertFrame, CallsThatDoNotFitTheServiceAreRefused) {
  const auto invalid = [](const Status& status, const char* what) {
    ExpectRefused(status, StatusCode::kInvalidArgument, what);
  };
  EXPECT_TRUE(Decoded(Call()).ok());
  invalid(Decoded(Call(kAssignments, 3)), "layer 3");
  invalid(Decoded(Call(), {3, 8, 4, 8, 16}), "wanted 8");
  invalid(Decoded(Call(), {3, kHidden, 4, 8, 1}), "2 rows in one call, at most 1");
  invalid(Decoded(Call(), {3, kHidden, 4, 6, 16}), "expert 6 is not in this shard's [4, 6)");
  invalid(Decoded(Call(), {3, kHidden, 5, 8, 16}), "expert 4 is not in this shard's [5, 8)");
  const auto with = [](size_t i, ExpertAssignment a) {
    auto assignments = kAssignments;
    assignments[i] = a;
    return Call(assignments);
  };
  invalid(Decoded(with(2, {2, 2, 6, 1})), "row 2");
  invalid(Decoded(with(2, {-1, 2, 6, 1})), "row -1");
  invalid(Decoded(with(2, {1, 3, 6, 1})), "slot 3");
  invalid(Decoded(with(2, {1, -1, 6, 1})), "slot -1");
  invalid(Decoded(with(2, {1, 2, 5, 1})), "ascending");
  invalid(Decoded(with(2, {0, 2, 6, 1})), "ascending");
  invalid(Decoded(with(2, {1, 0, 6, 1})), "a slot of two rows");
  invalid(Decoded(with(1, {0, 0, 6, 1})), "1 slots belong to no assignment");
  invalid(Decoded(Call(kAssignments, 1, 4)), "4 slots for 3 assignments");
}

}  // namespace
}  // namespace cachalot

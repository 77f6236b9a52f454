// Logits from a router that is not the one that it was taken for.

#include <gmock/gmock.h>

#include <cstring>
#include <limits>

#include "client/cli/logits_rows.h"
#include "client/sdk/client.h"
#include "tests/client/fake_router.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;

constexpr int kIds = 3, kVocab = 4;

/// `count` values, counted on from `from`.
v1::LogitsResponse Rows(int64_t first, int64_t rows, size_t count, float from = 0) {
  std::vector<float> values(count);
  for (float& value : values) value = from++;
  v1::LogitsResponse response;
  response.set_first_row(first);
  response.set_rows(rows);
  response.mutable_values()->resize(count * sizeof(float));
  if (count > 0) std::memcpy(response.mutable_values()->data(), values.data(), count * sizeof(float));
  return response;
}

/// As `cachalot logits --router` does it.
StatusOr<std::vector<float>> Ask(std::vector<v1::LogitsResponse> responses) {
  FakeRouter router(1);
  router.logits() = std::move(responses);
  client::Client client(router.address());
  cli::LogitsRows all(kIds, kVocab);
  const auto status = client.Logits({7, 8, 9}, 0, 0, [&](int64_t first, int64_t rows, const float* values, size_t count) {
    all.Take(first, rows, values, count);
  });
  EXPECT_TRUE(status.ok()) << status.message;
  return all.Finish();
}

TEST(LogitsRows, ArePutTogether) {
  const auto all = Ask({Rows(0, 2, 2 * kVocab), Rows(2, 1, kVocab, 2 * kVocab)});
  ASSERT_TRUE(all.ok()) << all.status();
  for (size_t i = 0; i < kIds * kVocab; ++i) EXPECT_EQ((*all)[i], static_cast<float>(i));
}

TEST(LogitsRows, OfAnotherVocabularyOrOfOtherIdsAreRefused) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max(), kLeast = std::numeric_limits<int64_t>::min();
  const struct {
    int64_t first, rows;
    size_t count;
  } wrong[] = {
      {0, kIds, kIds * (kVocab - 1)},  // a smaller vocabulary
      {0, kIds, kIds * (kVocab + 1)},  // a larger one
      {0, kIds, 0},
      {1, kIds, kIds * kVocab},
      {1, kIds - 1, (kIds - 1) * kVocab},  // out of turn
      {kIds + 1, 0, 0},
      {-1, 1, kVocab},
      {0, -1, 0},
      {1, kMost, kVocab},  // the sum overflows
      {kMost, 1, kVocab},
      {kMost, kMost, kVocab},
      {0, kMost / kVocab + 1, 0},  // the product does
      {kLeast, kLeast, 0},
  };
  for (const auto& [first, rows, count] : wrong) {
    SCOPED_TRACE(std::to_string(count) + " values as rows " + std::to_string(rows) + " from " + std::to_string(first));
    // What is right beside it does not help.
    const auto all = Ask({Rows(first, rows, count), Rows(0, kIds, kIds * kVocab)});
    EXPECT_EQ(all.status().code(), StatusCode::kDataLoss);
    EXPECT_THAT(std::string(StatusMessage(all.status())),
                HasSubstr("wanted rows of " + std::to_string(kVocab) + " for " + std::to_string(kIds) + " ids"));
  }
  const auto twice = Ask({Rows(0, 1, kVocab), Rows(0, 1, kVocab), Rows(2, 1, kVocab)});
  EXPECT_EQ(twice.status().code(), StatusCode::kDataLoss) << "row 1 never came";
  const auto less = Ask({Rows(0, 2, 2 * kVocab)});
  EXPECT_EQ(less.status().code(), StatusCode::kDataLoss);
  EXPECT_THAT(std::string(StatusMessage(less.status())), HasSubstr("2 rows of logits for 3 ids"));
}

TEST(LogitsRows, AreNotGivenByARouterWithoutDebugLogits) {
  v1::Inference::Service plain;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&plain);
  const auto server = builder.BuildAndStart();
  ASSERT_TRUE(server);
  client::Client client("127.0.0.1:" + std::to_string(port));
  const auto status = client.Logits({7}, 0, 0, [](int64_t, int64_t, const float*, size_t) {});
  EXPECT_EQ(status.code, static_cast<int>(StatusCode::kUnimplemented));
  EXPECT_EQ(status.message, "the router does not give logits: run all roles with --debug-logits");
}

TEST(LogitsRows, TakeNoMemoryForWhatIsOnlySaid) {
  cli::LogitsRows all(1 << 20, std::numeric_limits<int32_t>::max());
  EXPECT_EQ(all.Finish().status().code(), StatusCode::kDataLoss);
}

}  // namespace
}  // namespace cachalot::testing

#include "router/cluster_view.h"

#include <gmock/gmock.h>

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;

v1::Compat Weights(const std::string& weights) {
  v1::Compat compat;
  compat.set_weights(weights);
  compat.set_protocol(1);
  return compat;
}

class ClusterViewTest : public ::testing::Test {
 protected:
  ClusterViewTest() {
    view_.on_change = [this] { ++changes_; };
  }
  Status Admit(int member, const std::string& weights, bool binds = true) {
    return view_.Admit(&members_[member], Weights(weights), "worker " + std::to_string(member), binds);
  }
  ClusterView view_;
  int members_[4] = {};
  int changes_ = 0;
};

TEST_F(ClusterViewTest, TheFirstSetsItOthersAreMeasured) {
  EXPECT_TRUE(Admit(0, "a").ok());
  EXPECT_TRUE(Admit(1, "a").ok());
  const Status refused = Admit(2, "b");
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(StatusMessage(refused), HasSubstr("worker 2 is not compatible: weights is \"b\" there, \"a\" here"));
  EXPECT_EQ(view_.compat()->weights(), "a");
  EXPECT_EQ(changes_, 0);
  EXPECT_EQ(view_.generation(), 0u);
}

TEST_F(ClusterViewTest, ANewOneWhenNobodyOfTheOldIsLeft) {
  ASSERT_TRUE(Admit(0, "a").ok());
  ASSERT_TRUE(Admit(1, "a").ok());
  EXPECT_FALSE(Admit(2, "b").ok());
  view_.Leave(&members_[0]);
  EXPECT_FALSE(Admit(2, "b").ok()) << "worker 1 is still there";
  view_.Leave(&members_[1]);
  EXPECT_TRUE(Admit(2, "b").ok());
  EXPECT_EQ(view_.compat()->weights(), "b");
  EXPECT_EQ(changes_, 1);
  EXPECT_EQ(view_.generation(), 1u);
  EXPECT_FALSE(Admit(0, "a").ok()) << "and the old is the wrong one now";
  EXPECT_TRUE(Admit(3, "b").ok());
  EXPECT_EQ(changes_, 1);
}

TEST_F(ClusterViewTest, RestartedOneByOneAtTheirOldAddresses) {
  ASSERT_TRUE(Admit(0, "a").ok());
  ASSERT_TRUE(Admit(1, "a").ok());
  EXPECT_FALSE(Admit(0, "b").ok());
  EXPECT_TRUE(Admit(1, "b").ok()) << "it was the last with the old weights";
  EXPECT_TRUE(Admit(0, "b").ok());
  EXPECT_EQ(view_.generation(), 1u);
}

TEST_F(ClusterViewTest, OneThatLeavesBindsNobody) {
  ASSERT_TRUE(Admit(0, "a").ok());
  view_.Leave(&members_[0]);
  EXPECT_TRUE(Admit(0, "a", false).ok());
  EXPECT_TRUE(Admit(1, "b").ok());
  EXPECT_FALSE(Admit(0, "a", false).ok());
  EXPECT_EQ(view_.compat()->weights(), "b") << "and does not take the cluster back";
  ClusterView empty;
  EXPECT_TRUE(empty.Admit(this, Weights("a"), "w", false).ok());
  EXPECT_FALSE(empty.compat().has_value());
}

TEST(CheckRole, NamesBothRoles) {
  EXPECT_TRUE(CheckRole(v1::ROLE_DECODE, v1::ROLE_DECODE).ok());
  EXPECT_EQ(StatusMessage(CheckRole(v1::ROLE_PREFILL, v1::ROLE_DECODE)), "wanted a prefill worker, it is a decode worker");
  EXPECT_EQ(StatusMessage(CheckRole(v1::ROLE_DECODE, v1::ROLE_EXPERT)), "wanted a decode worker, it is an expert service");
}

}  // namespace
}  // namespace cachalot::testing

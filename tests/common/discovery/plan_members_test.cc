#include "common/discovery/plan_members.h"

#include <gmock/gmock.h>

#include <random>
#include <set>

namespace cachalot::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Addresses = StatusOr<std::vector<std::string>>;

MemberState In(const std::string& address, bool busy = false, bool answers = true) {
  return {.address = address, .busy = busy, .answers = answers};
}
MemberState Leaving(const std::string& address, bool busy, bool answers = true) {
  return {.address = address, .draining = true, .busy = busy, .answers = answers};
}

TEST(PlanMembers, NewAddressesComeOnce) {
  const MemberState current[] = {In("a")};
  const MemberPlan plan = PlanMembers(current, Addresses({"b", "a", "c", "b"}));
  EXPECT_THAT(plan.add, ElementsAre("b", "c"));
  EXPECT_THAT(plan.drain, IsEmpty());
  EXPECT_THAT(plan.remove, IsEmpty());
  EXPECT_THAT(PlanMembers({}, Addresses({"x"})).add, ElementsAre("x"));
}

TEST(PlanMembers, ABusyOneThatLeavesIsDrainedAnIdleOrDeadOneRemoved) {
  const MemberState current[] = {In("busy", true), In("idle"), In("dead", true, false), In("stays", true)};
  const MemberPlan plan = PlanMembers(current, Addresses({"stays"}));
  EXPECT_THAT(plan.drain, ElementsAre(0, 1, 2));
  EXPECT_THAT(plan.remove, ElementsAre(1, 2));
  EXPECT_THAT(plan.add, IsEmpty());
}

TEST(PlanMembers, ADrainedOneEndsWhenIdleOrDead) {
  const MemberState current[] = {Leaving("busy", true), Leaving("idle", false), Leaving("dead", true, false)};
  const MemberPlan plan = PlanMembers(current, Addresses({"other"}));
  EXPECT_THAT(plan.remove, ElementsAre(1, 2));
  EXPECT_THAT(plan.drain, IsEmpty());
}

TEST(PlanMembers, OneThatIsBackIsRestored) {
  const MemberState current[] = {Leaving("back", true), Leaving("idle", false)};
  const MemberPlan plan = PlanMembers(current, Addresses({"idle", "back"}));
  EXPECT_THAT(plan.restore, ElementsAre(0, 1));
  EXPECT_THAT(plan.remove, IsEmpty());
  EXPECT_THAT(plan.add, IsEmpty());
}

TEST(PlanMembers, NoAnswerChangesNothing) {
  const MemberState current[] = {In("a"), In("b", true, false), Leaving("c", true)};
  for (const Addresses& none : {Addresses(Unavailable("no server")), Addresses(std::vector<std::string>())}) {
    const MemberPlan plan = PlanMembers(current, none);
    EXPECT_THAT(plan.add, IsEmpty());
    EXPECT_THAT(plan.drain, IsEmpty());
    EXPECT_THAT(plan.restore, IsEmpty());
    EXPECT_THAT(plan.remove, IsEmpty());
  }
  // What an earlier answer drained still ends.
  const MemberState leaving[] = {Leaving("c", false)};
  EXPECT_THAT(PlanMembers(leaving, Addresses(Unavailable("no server"))).remove, ElementsAre(0));
}

TEST(PlanMembers, GivenByFlagStaysWhateverDnsSays) {
  MemberState member = In("a", false, false);
  member.listed = true;
  const MemberState current[] = {member};
  const MemberPlan plan = PlanMembers(current, Addresses({"b"}));
  EXPECT_THAT(plan.drain, IsEmpty());
  EXPECT_THAT(plan.remove, IsEmpty());
  EXPECT_THAT(plan.add, ElementsAre("b"));
  EXPECT_THAT(PlanMembers(current, Addresses({"a"})).add, IsEmpty()) << "it is a member already";
}

/// Whatever comes and goes: members are DNS's last answer and busy ones that have left, nobody twice.
TEST(PlanMembers, ManyRandomAnswers) {
  std::mt19937 rng(20240731);
  std::vector<MemberState> members;
  for (int round = 0; round < 2000; ++round) {
    std::set<std::string> wanted;
    for (int i = 0; i < 6; ++i)
      if (rng() % 2) wanted.insert(std::string(1, static_cast<char>('a' + i)));
    const bool fails = rng() % 4 == 0;
    for (MemberState& m : members) {
      m.busy = rng() % 2;
      m.answers = rng() % 4 != 0;
    }
    const auto before = members;
    const MemberPlan plan = PlanMembers(
        members, fails ? Addresses(Unavailable("x")) : Addresses(std::vector<std::string>(wanted.begin(), wanted.end())));
    for (const size_t i : plan.drain) members[i].draining = true;
    for (const size_t i : plan.restore) members[i].draining = false;
    for (auto at = plan.remove.rbegin(); at != plan.remove.rend(); ++at) {
      ASSERT_TRUE(members[*at].draining);
      ASSERT_TRUE(!members[*at].busy || !members[*at].answers) << "round " << round << ": running requests lost";
      members.erase(members.begin() + static_cast<ptrdiff_t>(*at));
    }
    for (const std::string& address : plan.add) members.push_back({.address = address});
    std::set<std::string> names, takes_new;
    for (const MemberState& m : members) {
      ASSERT_TRUE(names.insert(m.address).second) << m.address << " twice in round " << round;
      if (!m.draining) takes_new.insert(m.address);
    }
    if (!fails && !wanted.empty()) {
      ASSERT_EQ(takes_new, wanted) << "round " << round;
    } else {
      for (const MemberState& m : before)
        ASSERT_TRUE(m.draining || names.contains(m.address)) << "round " << round;
    }
  }
}

}  // namespace
}  // namespace cachalot::testing

// How servers end when somebody is still connected, or before they are ready: at once, and with 0.

#include <gmock/gmock.h>

#include <csignal>

#include "tests/support/idle_peer.h"
#include "tests/support/oracle.h"
#include "tests/support/programs.h"

namespace cachalot::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

/// Nobody listens there.
constexpr const char* kNobody = "127.0.0.1:1";

/// From the line that says so.
std::string ListensOn(const Programs& programs) {
  const std::string log = ReadText(programs.log()), mark = "listening on ";
  const size_t begin = log.find(mark) + mark.size();
  return log.substr(begin, log.find('\n', begin) - begin);
}

TEST(Stop, ARouterThatWaitsForWorkersEndsAtOnce) {
  for (const int number : {SIGTERM, SIGINT}) {
    Programs programs;
    const auto router = programs.Start({"cachalot-router", "--listen", "127.0.0.1:0", "--prefill", kNobody, "--decode",
                                        kNobody, "--die-with-parent"});
    ASSERT_TRUE(programs.WaitLogged(*router, "listening on "));
    router->Signal(number);
    const Ended ended = programs.End(*router);
    EXPECT_EQ(ended.exit.ToString(), ChildExit{}.ToString());
    ASSERT_THAT(ended.err, HasSubstr("stopping: signal"));
    // One that first waits the rest of its round says this at the end of it.
    EXPECT_THAT(ended.err.substr(ended.err.find("stopping: signal")), Not(HasSubstr("waiting for workers")));
    EXPECT_THAT(ended.out, Not(HasSubstr("ready")));
  }
}

TEST(Stop, IdleClientsHoldUpNoServer) {
  Programs programs;
  const auto router =
      programs.Start({"cachalot-router", "--listen", "127.0.0.1:0", "--prefill", kNobody, "--decode", kNobody,
                      "--drain-ms", "3600000", "--die-with-parent"});
  ASSERT_TRUE(programs.WaitLogged(*router, "listening on "));
  IdlePeer idle(ListensOn(programs));
  router->Signal(SIGTERM);
  EXPECT_TRUE(idle.IsCut());
  EXPECT_EQ(programs.End(*router).exit.ToString(), ChildExit{}.ToString());
}

}  // namespace
}  // namespace cachalot::testing

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "common/metrics/registry.h"
#include "common/metrics/server.h"

namespace cachalot {
namespace {

using testing::HasSubstr;
using testing::IsSupersetOf;
using testing::Pair;

// GET over loopback; the response with its head.
std::string Get(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const timeval limit{20, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string response;
  char piece[4096];
  for (ssize_t count; (count = read(fd, piece, sizeof(piece))) > 0;) response.append(piece, count);
  close(fd);
  return response;
}

// Sample lines: "name{labels}" -> value.
std::map<std::string, double> Samples(const std::string& text) {
  std::map<std::string, double> samples;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.rfind(' ');
    if (line.empty() || line[0] == '#' || space == std::string::npos) continue;
    samples[line.substr(0, space)] = std::strtod(line.c_str() + space, nullptr);
  }
  return samples;
}

TEST(Metrics, AScrapeShowsWhatWasRecorded) {
  MetricsRegistry registry;
  Counter& tokens = registry.AddCounter("cachalot_tokens_total", "Tokens out.", {{"role", "decode"}});
  Gauge& blocks = registry.AddGauge("cachalot_blocks", "Blocks in use.");
  Histogram& step = registry.AddHistogram("cachalot_step_seconds", "Step time.", {0.001, 0.01});
  auto server = MetricsServer::Start("127.0.0.1:0", registry);
  ASSERT_TRUE(server.ok()) << server.status();
  ASSERT_GT((*server)->port(), 0);
  tokens.Add();
  tokens.Add(41);
  blocks.Set(7);
  blocks.Add(-2);
  step.Observe(0.005);
  step.Observe(5);
  int scrapes = 0;
  const int id = registry.AddCollector([&] { blocks.Set(5 + scrapes++); });
  const std::string response = Get((*server)->port(), "/metrics");
  EXPECT_THAT(response, HasSubstr("200 OK"));
  EXPECT_THAT(response, HasSubstr("# HELP cachalot_tokens_total Tokens out."));
  EXPECT_THAT(Samples(response), IsSupersetOf({Pair("cachalot_tokens_total{role=\"decode\"}", 42.0),
                                               Pair("cachalot_blocks", 5.0),
                                               Pair("cachalot_step_seconds_bucket{le=\"0.001\"}", 0.0),
                                               Pair("cachalot_step_seconds_bucket{le=\"0.01\"}", 1.0),
                                               Pair("cachalot_step_seconds_bucket{le=\"+Inf\"}", 2.0),
                                               Pair("cachalot_step_seconds_count", 2.0)}));
  EXPECT_EQ(scrapes, 1);
  registry.RemoveCollector(id);
  EXPECT_THAT(Samples(registry.Text()), IsSupersetOf({Pair("cachalot_blocks", 5.0)}));
  EXPECT_EQ(scrapes, 1);
}

TEST(Metrics, TheSameNameAndLabelsAreTheSameMetric) {
  MetricsRegistry registry;
  Counter& a = registry.AddCounter("hits_total", "Hits.", {{"kind", "a"}});
  Counter& b = registry.AddCounter("hits_total", "Hits.", {{"kind", "b"}});
  EXPECT_EQ(&a, &registry.AddCounter("hits_total", "Hits.", {{"kind", "a"}}));
  EXPECT_NE(&a, &b);
}

TEST(Metrics, CountsFromManyThreads) {
  MetricsRegistry registry;
  Counter& hits = registry.AddCounter("hits_total", "Hits.");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) hits.Add();
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(hits.Value(), 4000);
}

TEST(MetricsDeathTest, IllegalNamesAreBugs) {
  MetricsRegistry registry;
  EXPECT_DEATH(registry.AddCounter("no spaces", "x"), "no spaces");
  registry.AddCounter("both", "x");
  EXPECT_DEATH(registry.AddGauge("both", "x"), "two kinds");
}

TEST(MetricsServer, OffIsNoError) {
  MetricsRegistry registry;
  auto server = MetricsServer::Start("", registry);
  ASSERT_TRUE(server.ok());
  EXPECT_EQ((*server)->port(), 0);
}

TEST(MetricsServer, SaysWhyItCannotListen) {
  MetricsRegistry registry;
  auto first = MetricsServer::Start("127.0.0.1:0", registry);
  ASSERT_TRUE(first.ok());
  const std::string taken = "127.0.0.1:" + std::to_string((*first)->port());
  const Status status = MetricsServer::Start(taken, registry).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(StatusMessage(status), HasSubstr(taken + ": Address already in use"));
  for (const char* bad :
       {"nonsense", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "localhost:1", ":80", "[::1]:0"}) {
    EXPECT_EQ(MetricsServer::Start(bad, registry).status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace cachalot

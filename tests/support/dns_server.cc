#include "tests/support/dns_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "common/base/check.h"

namespace cachalot::testing {
namespace {

// RFC 1035, 4.1.1: the header's fields, and what we set in its flags.
constexpr size_t kHeaderBytes = 12;
constexpr uint8_t kResponse = 0x80, kAuthoritative = 0x04, kTruncated = 0x02;
constexpr uint8_t kServerFailure = 2, kNameError = 3;
constexpr int kTypeA = 1, kTypeAaaa = 28;

void Append16(std::string& to, int value) {
  to.push_back(static_cast<char>(value >> 8));
  to.push_back(static_cast<char>(value));
}

}  // namespace

DnsServer::DnsServer() : fd_(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  CHECK(fd_ >= 0 && bind(fd_, reinterpret_cast<sockaddr*>(&address), size) == 0);
  CHECK(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { Run(); });
}

DnsServer::~DnsServer() {
  stopping_ = true;
  // A datagram to ourselves wakes the reader.
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port_));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sendto(fd_, "", 1, 0, reinterpret_cast<sockaddr*>(&address), sizeof(address));
  thread_.join();
  close(fd_);
}

void DnsServer::Set(const std::string& name, std::vector<std::string> addresses) {
  std::lock_guard lock(mutex_);
  records_[name] = std::move(addresses);
}

void DnsServer::Run() {
  std::string buffer(1500, '\0');
  while (!stopping_) {
    sockaddr_in from{};
    socklen_t size = sizeof(from);
    const ssize_t bytes =
        recvfrom(fd_, buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr*>(&from), &size);
    if (bytes < static_cast<ssize_t>(kHeaderBytes)) continue;
    ++queries_;
    if (mode_ == Mode::kSilent) continue;
    const std::string answer = Answer(buffer.substr(0, static_cast<size_t>(bytes)));
    sendto(fd_, answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&from), size);
  }
}

std::string DnsServer::Answer(const std::string& query) {
  std::string name;
  size_t at = kHeaderBytes;
  while (at < query.size() && query[at] != 0) {
    const auto length = static_cast<size_t>(static_cast<uint8_t>(query[at]));
    name += (name.empty() ? "" : ".") + query.substr(at + 1, length);
    at += 1 + length;
  }
  const size_t question_end = std::min(at + 5, query.size());
  const int type = question_end >= 4 ? static_cast<uint8_t>(query[question_end - 3]) : 0;
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });

  std::lock_guard lock(mutex_);
  const auto found = records_.find(name);
  std::string records;
  int count = 0;
  for (const std::string& text : found == records_.end() ? std::vector<std::string>() : found->second) {
    const bool v6 = text.find(':') != std::string::npos;
    if (type != (v6 ? kTypeAaaa : kTypeA)) continue;
    std::string bytes(v6 ? 16 : 4, '\0');
    CHECK(inet_pton(v6 ? AF_INET6 : AF_INET, text.c_str(), bytes.data()) == 1);
    Append16(records, 0xC000 | kHeaderBytes);  // the question's name
    Append16(records, type);
    Append16(records, 1);  // class IN
    Append16(records, 0), Append16(records, 1);  // seconds to live
    Append16(records, static_cast<int>(bytes.size()));
    records += bytes;
    ++count;
  }
  const Mode mode = mode_;
  const uint8_t code = mode == Mode::kFail ? kServerFailure : found == records_.end() ? kNameError : 0;
  const bool truncated = mode == Mode::kTruncate;
  if (code || truncated) records.clear(), count = 0;
  std::string answer = query.substr(0, 2);
  answer.push_back(static_cast<char>(kResponse | kAuthoritative | (truncated ? kTruncated : 0)));
  answer.push_back(static_cast<char>(code));
  Append16(answer, 1), Append16(answer, count), Append16(answer, 0), Append16(answer, 0);
  return answer + query.substr(kHeaderBytes, question_end - kHeaderBytes) + records;
}

}  // namespace cachalot::testing

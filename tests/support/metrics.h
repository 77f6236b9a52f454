#pragma once
// The Prometheus endpoints of processes under test.

#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <string>

#include "tests/support/own_address.h"

namespace cachalot::testing {

inline std::string MetricsAddress(int role) { return OwnAddress(role); }

/// What /metrics at `address` says of `name`; -1 when it does not, or not in five seconds.
inline double Metric(const std::string& address, const std::string& name) {
  const size_t colon = address.find(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const timeval at_most{.tv_sec = 5, .tv_usec = 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &at_most, sizeof(at_most));
  std::string text;
  const std::string get = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0 &&
      write(fd, get.data(), get.size()) == static_cast<ssize_t>(get.size())) {
    char buffer[4096];
    for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) text.append(buffer, static_cast<size_t>(n));
  }
  close(fd);
  const size_t at = text.find("\n" + name + " ");
  return at == std::string::npos ? -1 : std::stod(text.substr(at + name.size() + 2));
}

}  // namespace cachalot::testing

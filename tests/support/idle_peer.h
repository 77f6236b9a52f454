#pragma once
// A client that has connected, says nothing more and answers nothing: what an idle gRPC client is to a server for as
// long as nobody polls there.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "tests/support/patience.h"

namespace cachalot::testing {

class IdlePeer {
 public:
  /// `address` is 127.0.0.1:PORT of a gRPC server. Returns when that takes the connection for HTTP/2.
  explicit IdlePeer(const std::string& address) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0) << address;
    const std::string hello("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);  // and empty SETTINGS
    EXPECT_EQ(send(fd_, hello.data(), hello.size(), MSG_NOSIGNAL), static_cast<ssize_t>(hello.size()));
    EXPECT_EQ(NextFrame(), static_cast<int>(kSettings));
  }
  ~IdlePeer() { close(fd_); }
  IdlePeer(const IdlePeer&) = delete;
  IdlePeer& operator=(const IdlePeer&) = delete;

  /// Until the server has closed the connection. True when it did so of its own accord: then its last GOAWAY carries
  /// an error. When nobody has answered the first one for 20 s, gRPC sends another, without an error, and closes: it
  /// has waited for us.
  bool IsCut() {
    unsigned last_error = 0;
    for (int type = NextFrame(&last_error); type != kClosed; type = NextFrame(&last_error)) {
    }
    return last_error != 0;
  }

 private:
  enum Type { kClosed = -1, kSettings = 4, kGoaway = 7 };

  /// The type of the next frame; of a GOAWAY the error code, too.
  int NextFrame(unsigned* goaway_error = nullptr) {
    unsigned char head[9];
    if (!Read(head, sizeof(head))) return kClosed;
    std::string body(static_cast<size_t>(head[0] << 16 | head[1] << 8 | head[2]), '\0');
    if (!Read(reinterpret_cast<unsigned char*>(body.data()), body.size())) return kClosed;
    if (head[3] == kGoaway && goaway_error != nullptr) {
      *goaway_error = 0;
      for (size_t i = 4; i < 8; ++i) *goaway_error = *goaway_error << 8 | static_cast<unsigned char>(body.at(i));
    }
    return head[3];
  }
  bool Read(unsigned char* to, size_t count) {
    for (size_t have = 0; have < count;) {
      pollfd ready{fd_, POLLIN, 0};
      if (poll(&ready, 1, static_cast<int>(kPatience / std::chrono::milliseconds(1))) <= 0) {
        ADD_FAILURE() << "the server neither said anything nor closed the connection";
        return false;
      }
      const ssize_t got = recv(fd_, to + have, count - have, 0);
      if (got <= 0) return false;
      have += static_cast<size_t>(got);
    }
    return true;
  }

  const int fd_;
};

}  // namespace cachalot::testing

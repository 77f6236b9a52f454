#include "common/discovery/ares_resolver.h"

#include <ares.h>
#include <arpa/inet.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace cachalot {
namespace {

struct Channel {
  ~Channel() {
    if (ares) ares_destroy(ares);
  }
  ares_channel ares = nullptr;
};

struct Answer {
  bool here = false;
  int status = ARES_SUCCESS;
  std::vector<std::string> addresses;
};

void Take(void* argument, int status, int /*timeouts*/, ares_addrinfo* result) {
  auto& answer = *static_cast<Answer*>(argument);
  answer.here = true;
  answer.status = status;
  for (const ares_addrinfo_node* node = result ? result->nodes : nullptr; node; node = node->ai_next) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    const void* bytes =
        node->ai_family == AF_INET
            ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in*>(node->ai_addr)->sin_addr)
            : static_cast<const void*>(&reinterpret_cast<const sockaddr_in6*>(node->ai_addr)->sin6_addr);
    if (inet_ntop(node->ai_family, bytes, text.data(), text.size())) answer.addresses.emplace_back(text.data());
  }
  if (result) ares_freeaddrinfo(result);
}

Status Open(const AresOptions& options, Channel& channel) {
  ares_options ares{};
  ares.timeout = static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(options.timeout).count());
  ares.tries = options.tries;
  int mask = ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES;
  std::array<char, 2> dns_only{"b"};
  if (!options.servers.empty()) {
    ares.lookups = dns_only.data();
    mask |= ARES_OPT_LOOKUPS;
  }
  int status = ares_init_options(&channel.ares, &ares, mask);
  if (status != ARES_SUCCESS) return Unavailable(std::string("c-ares: ") + ares_strerror(status));
  if (options.servers.empty()) return OkStatus();
  status = ares_set_servers_ports_csv(channel.ares, options.servers.c_str());
  if (status != ARES_SUCCESS)
    return InvalidArgument("DNS server \"" + options.servers + "\": wanted IP:PORT, " + ares_strerror(status));
  return OkStatus();
}

/// Lets c-ares work until it needs a socket or a time-out, or `stop_fd` becomes readable. False: stop.
bool Drive(ares_channel channel, int stop_fd) {
  std::array<ares_socket_t, ARES_GETSOCK_MAXNUM> sockets{};
  const int wants = ares_getsock(channel, sockets.data(), sockets.size());
  std::vector<pollfd> polled = {{stop_fd, POLLIN, 0}};
  for (int i = 0; i < ARES_GETSOCK_MAXNUM; ++i) {
    const int events = (ARES_GETSOCK_READABLE(wants, i) ? POLLIN : 0) | (ARES_GETSOCK_WRITABLE(wants, i) ? POLLOUT : 0);
    if (events) polled.push_back({sockets[static_cast<size_t>(i)], static_cast<short>(events), 0});
  }
  timeval longest{1, 0}, wait{};
  const timeval* next = ares_timeout(channel, &longest, &wait);
  poll(polled.data(), polled.size(), static_cast<int>(next->tv_sec * 1000 + next->tv_usec / 1000 + 1));
  if (polled[0].revents) return false;
  bool any = false;
  for (size_t i = 1; i < polled.size(); ++i) {
    if (!polled[i].revents) continue;
    any = true;
    const bool read = polled[i].revents & ~POLLOUT, write = polled[i].revents & POLLOUT;
    ares_process_fd(channel, read ? polled[i].fd : ARES_SOCKET_BAD, write ? polled[i].fd : ARES_SOCKET_BAD);
  }
  if (!any) ares_process_fd(channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);  // time-outs
  return true;
}

}  // namespace

StatusOr<std::unique_ptr<AresResolver>> AresResolver::Make(AresOptions options) {
  const int status = ares_library_init(ARES_LIB_INIT_ALL);
  if (status != ARES_SUCCESS) return Internal(std::string("c-ares: ") + ares_strerror(status));
  Channel channel;
  RETURN_IF_ERROR(Open(options, channel));
  const int stop_fd = eventfd(0, EFD_CLOEXEC);
  if (stop_fd < 0) return Unavailable(std::string("eventfd: ") + std::strerror(errno));
  return std::unique_ptr<AresResolver>(new AresResolver(std::move(options), stop_fd));
}

AresResolver::AresResolver(AresOptions options, int stop_fd)
    : options_(std::move(options)), stop_fd_(stop_fd), thread_([this] { Run(); }) {}

AresResolver::~AresResolver() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(stop_fd_, &one, sizeof(one));
  changed_.notify_all();
  thread_.join();
  close(stop_fd_);
  ares_library_cleanup();
}

void AresResolver::Resolve(const std::string& name, Done done) {
  std::lock_guard lock(mutex_);
  questions_.push_back({name, std::move(done)});
  changed_.notify_all();
}

void AresResolver::Run() {
  for (;;) {
    Question question;
    bool stopping;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !questions_.empty(); });
      if (questions_.empty()) return;
      question = std::move(questions_.front());
      questions_.pop_front();
      stopping = stopping_;
    }
    question.done(stopping ? Cancelled(question.name + ": the resolver goes") : Ask(question.name));
  }
}

StatusOr<std::vector<std::string>> AresResolver::Ask(const std::string& name) const {
  StatusOr<std::vector<std::string>> addresses = AskFamily(name, AF_INET);
  if (addresses.status().code() == StatusCode::kNotFound) addresses = AskFamily(name, AF_INET6);
  if (!addresses.ok()) return addresses;
  std::sort(addresses->begin(), addresses->end());
  addresses->erase(std::unique(addresses->begin(), addresses->end()), addresses->end());
  return addresses;
}

StatusOr<std::vector<std::string>> AresResolver::AskFamily(const std::string& name, int family) const {
  Answer answer;  // outlives the channel, which may end the question when it goes
  Channel channel;
  RETURN_IF_ERROR(Open(options_, channel));
  ares_addrinfo_hints hints{};
  hints.ai_family = family;
  hints.ai_flags = ARES_AI_NOSORT;
  hints.ai_socktype = SOCK_STREAM;
  ares_getaddrinfo(channel.ares, name.c_str(), nullptr, &hints, &Take, &answer);
  while (!answer.here)
    if (!Drive(channel.ares, stop_fd_)) return Cancelled(name + ": the resolver goes");
  if (answer.status == ARES_ENOTFOUND || answer.status == ARES_ENODATA ||
      (answer.status == ARES_SUCCESS && answer.addresses.empty()))
    return NotFound(name + ": DNS knows no address of it");
  if (answer.status != ARES_SUCCESS) return Unavailable(name + ": DNS: " + ares_strerror(answer.status));
  return std::move(answer.addresses);
}

}  // namespace cachalot

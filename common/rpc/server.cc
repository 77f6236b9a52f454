#include "common/rpc/server.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/base/address.h"
#include "common/base/check.h"
#include "grpc/grpc.h"
#include "grpcpp/security/server_credentials.h"

namespace cachalot::rpc {
namespace {

// Calls that arrive while all of a method's acceptors are busy wait inside gRPC; an acceptor is back in
// microseconds.
constexpr int kAcceptorsPerMethod = 4;

// A client that reads the end of its last call closes the connection itself; one that is cut before it has read that
// could lose it.
constexpr Duration kLastWords = std::chrono::milliseconds(200);

/// gRPC would replace a socket file that is there, so this does not bind: it looks for what would keep gRPC from it.
Status ProbeSocketFile(const std::string& path) {
  constexpr size_t kMaxPath = sizeof(sockaddr_un::sun_path) - 1;
  if (path.size() > kMaxPath)
    return InvalidArgument("the path has " + std::to_string(path.size()) + " bytes, wanted at most " +
                           std::to_string(kMaxPath));
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  struct stat found{};
  if (stat(directory.c_str(), &found) != 0)
    return Unavailable("directory " + directory + ": " + std::strerror(errno) + "; create it first");
  if (!S_ISDIR(found.st_mode)) return Unavailable(directory + " is no directory");
  if (access(directory.c_str(), W_OK | X_OK) != 0)
    return Unavailable("directory " + directory + ": " + std::strerror(errno));
  if (lstat(path.c_str(), &found) == 0 && !S_ISSOCK(found.st_mode))
    return Unavailable(path + " is there and is no socket; remove it or take another name");
  return OkStatus();
}

}  // namespace

Server::Server(ServerOptions options) : options_(std::move(options)) {
  builder_.SetMaxReceiveMessageSize(options_.max_message_bytes);
  builder_.SetMaxSendMessageSize(options_.max_message_bytes);
  // With it on, which is the default, a second server on the same port would silently take half of the
  // connections.
  builder_.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Clients ping every few seconds to notice a server that hangs; by default that counts as an attack.
  builder_.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  builder_.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port_);
}

Server::~Server() {
  Shutdown(Duration::zero());
  server_.reset();  // before the queues and the services
}

Loop* Server::AddLoop(LoopOptions options, bool listens) {
  CHECK_MSG(!server_, "AddLoop after Start");
  std::unique_ptr<grpc::ServerCompletionQueue> queue = builder_.AddCompletionQueue(listens);
  grpc::ServerCompletionQueue* server_queue = queue.get();
  loops_.push_back(std::make_unique<Loop>(std::move(options), std::move(queue)));
  loops_.back()->server_queue_ = server_queue;
  return loops_.back().get();
}

void Server::AddMethod(Loop* loop, grpc::Service* service, AcceptorFactory acceptor) {
  CHECK_MSG(!server_, "a method registered after Start");
  CHECK_MSG(loop->server_queue() != nullptr, "a method on a loop that is not the server's");
  if (std::find(services_.begin(), services_.end(), service) == services_.end()) {
    services_.push_back(service);
    builder_.RegisterService(service);
  }
  methods_.push_back({loop, std::move(acceptor)});
}

StatusOr<int> Server::Start() {
  CHECK_MSG(!server_ && !shut_down_, "a server started twice");
  Status status = ProbeAddress();
  if (status.ok()) {
    server_ = builder_.BuildAndStart();
    if (!server_) status = Unavailable("cannot listen on " + options_.listen + ": gRPC could not start");
  }
  if (!status.ok()) {
    shut_down_ = true;
    StopLoops();
    return status;
  }
  for (const Method& method : methods_) {
    for (int i = 0; i < kAcceptorsPerMethod; ++i) method.loop->Spawn(method.acceptor(), "acceptor");
  }
  if (ParseListenAddress(options_.listen)->is_unix()) port_ = 0;  // gRPC says 1
  return port_;
}

// gRPC only logs why it cannot listen, so the address is tried first for the system's reason.
Status Server::ProbeAddress() const {
  const std::string what = "cannot listen on " + options_.listen;
  const StatusOr<ListenAddress> address = ParseListenAddress(options_.listen);
  if (!address.ok()) return Annotate(address.status(), what);
  if (address->is_unix()) {
    const Status usable = ProbeSocketFile(address->path);
    return usable.ok() ? usable : Annotate(usable, what);
  }
  const std::string port = std::to_string(address->port);
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(address->host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return InvalidArgument(what + ": " + gai_strerror(error));
  }
  const int fd = socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, found->ai_protocol);
  const int on = 1;  // as gRPC: connections of a former server that linger do not count
  if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const bool usable = fd >= 0 && bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, 1) == 0;
  const int error = errno;
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  return usable ? OkStatus() : Unavailable(what + ": " + std::strerror(error));
}

void Server::Shutdown(Duration grace) {
  if (shut_down_) return;
  shut_down_ = true;
  for (const auto& loop : loops_)
    CHECK_MSG(!loop->IsDriver(), "Server::Shutdown on the thread of one of its loops");
  if (server_) EndCalls(std::chrono::steady_clock::now() + grace);
  StopLoops();
}

// grpc::Server::Shutdown alone waits for the clients, too, until they have closed their connections: an idle gRPC
// client looks at its own every 5 s only, one that is stopped never. So the calls are counted here.
void Server::EndCalls(TimePoint grace_end) {
  grpc_completion_queue* closed = grpc_completion_queue_create_for_next(nullptr);
  grpc_server_shutdown_and_notify(server_->c_server(), closed, this);
  if (live_.WaitNone(grace_end)) {
    const TimePoint heard = std::min(grace_end, live_.last_end() + kLastWords);
    grpc_completion_queue_next(closed, ToGprTime(heard), nullptr);
  }
  server_->Shutdown(ToGprTime(TimePoint()));  // cuts what is left
  grpc_completion_queue_shutdown(closed);
  while (grpc_completion_queue_next(closed, ToGprTime(TimePoint::max()), nullptr).type != GRPC_QUEUE_SHUTDOWN) {
  }
  grpc_completion_queue_destroy(closed);
}

void Server::StopLoops() {
  // The calls are over by now: what still runs on the loops are client calls and tasks without one.
  for (const auto& loop : loops_) loop->Shutdown(Duration::zero());
  for (const auto& loop : loops_) CHECK_MSG(loop->Join(TimePoint::max()), "a loop that did not end");
}

}  // namespace cachalot::rpc

#include "tests/support/link_proxy.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio.hpp>
#include <condition_variable>
#include <functional>
#include <future>
#include <mutex>
#include <set>
#include <thread>

#include "common/base/check.h"
#include "tests/support/own_address.h"

namespace cachalot::testing {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using Kind = LinkFault::Kind;

constexpr Duration kLongestDelay = std::chrono::seconds(10);
constexpr size_t kChunk = 16384;
// Frames of HTTP/2 without data are shorter, and stand at the ends of what is written at once.
constexpr int64_t kLongChunk = 1024;

StatusOr<tcp::endpoint> ParseTarget(const std::string& target) {
  const size_t colon = target.rfind(':');
  error_code error;
  const auto host = asio::ip::make_address_v4(target.substr(0, colon), error);
  char* end = nullptr;
  const std::string port = colon == std::string::npos ? "" : target.substr(colon + 1);
  const unsigned long number = std::strtoul(port.c_str(), &end, 10);
  if (error || port.empty() || *end || number == 0 || number > 65535)
    return InvalidArgument("link target: wanted IPv4 host:port, got '" + target + "'");
  return tcp::endpoint(host, static_cast<uint16_t>(number));
}

// Asio leaves close-on-exec to others, but a connection that a child of the test has inherited cannot be cut.
error_code OpenSocket(auto& socket) {
  error_code error;
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return {errno, boost::system::system_category()};
  socket.assign(tcp::v4(), fd, error);
  return error;
}

bool Lasts(Kind kind) { return kind == Kind::kDelay || kind == Kind::kHold; }

bool Flips(Kind kind) { return kind == Kind::kFlip || kind == Kind::kFlipChunk || kind == Kind::kFlipInside; }

/// One direction of a connection. At most one operation is under way: a read, a delay or a write.
struct Pipe {
  Pipe(tcp::socket& f, tcp::socket& t, Way w) : from(f), to(t), way(w), timer(f.get_executor()) {}

  tcp::socket &from, &to;
  const Way way;
  asio::steady_timer timer;
  std::array<char, kChunk> buffer;
  size_t begin = 0, end = 0;  // of the buffer: read and not yet delivered
  bool held = false;          // has bytes or an end that a fault holds back
  bool ended = false;         // `from` has ended
};

struct Connection {
  Connection(tcp::socket accepted, int64_t number)
      : serial(number),
        client(std::move(accepted)),
        server(client.get_executor()),
        to_server(client, server, Way::kToServer),
        to_client(server, client, Way::kToClient) {}

  const int64_t serial;
  tcp::socket client, server;
  Pipe to_server, to_client;
  std::set<std::string> marks;
  std::string tail;  // the last bytes to the server, in which a mark may have begun
  bool open = true;
};
using Shared = std::shared_ptr<Connection>;

}  // namespace

struct LinkProxy::Impl {
  explicit Impl(std::vector<std::string> texts) : marks(std::move(texts)), acceptor(io) {
    for (const std::string& mark : marks) longest_mark = std::max(longest_mark, mark.size());
  }

  // ---- connections

  error_code OpenAcceptor(const tcp::endpoint& at) {
    error_code error = OpenSocket(acceptor);
    if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor.bind(at, error);
    if (!error) acceptor.non_blocking(true, error);  // who connected may have gone when we accept
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (!error) Accept();
    return error;
  }

  void Accept() {
    acceptor.async_wait(tcp::acceptor::wait_read, [this](error_code error) {
      if (error) return;  // closed
      const int fd = ::accept4(acceptor.native_handle(), nullptr, nullptr, SOCK_CLOEXEC);
      if (fd >= 0) {
        tcp::socket socket(io);
        socket.assign(tcp::v4(), fd, error);
        if (!error) Welcome(std::move(socket));
      }
      Accept();
    });
  }

  void Welcome(tcp::socket socket) {
    auto c = std::make_shared<Connection>(std::move(socket), next_serial++);
    connections.insert(c);
    Count([](LinkCounters& n) { ++n.accepted, ++n.open; });
    if (OpenSocket(c->server)) return Close(c, /*reset=*/true);
    c->server.async_connect(target, [this, c](error_code error) {
      if (!c->open) return;
      if (error) return Close(c, /*reset=*/true);
      error_code ignored;
      c->client.set_option(tcp::no_delay(true), ignored);
      c->server.set_option(tcp::no_delay(true), ignored);
      Read(c, c->to_server);
      Read(c, c->to_client);
    });
  }

  void Close(const Shared& c, bool reset) {
    if (!std::exchange(c->open, false)) return;
    connections.erase(c);
    Count([](LinkCounters& n) { --n.open; });
    for (tcp::socket* socket : {&c->client, &c->server}) {
      error_code ignored;
      if (reset) socket->set_option(asio::socket_base::linger(true, 0), ignored);
      socket->close(ignored);
    }
    c->to_server.timer.cancel();
    c->to_client.timer.cancel();
  }

  // ---- bytes: Read -> Decide -> Deliver -> Read

  void Read(const Shared& c, Pipe& pipe) {
    pipe.from.async_read_some(asio::buffer(pipe.buffer), [this, c, &pipe](error_code error, size_t size) {
      if (!c->open) return;
      pipe.begin = 0;
      pipe.end = size;
      pipe.ended = static_cast<bool>(error);
      if (pipe.way == Way::kToServer) LookForMarks(*c, {pipe.buffer.data(), size});
      Count([&](LinkCounters& n) { (pipe.way == Way::kToServer ? n.to_server : n.to_client) += size; });
      Decide(c, pipe);
    });
  }

  void LookForMarks(Connection& c, std::string_view bytes) {
    if (marks.empty()) return;
    c.tail.append(bytes);
    for (const std::string& mark : marks)
      if (c.tail.find(mark) != std::string::npos) c.marks.insert(mark);
    if (c.tail.size() > longest_mark) c.tail.erase(0, c.tail.size() - longest_mark);
  }

  bool IsAbout(const Connection& c) const {
    if (struck && fault.spare_new && c.serial >= struck_serial) return false;
    return fault.kind != Kind::kNone && (fault.only.empty() || c.marks.contains(fault.only));
  }

  void Decide(const Shared& c, Pipe& pipe) {
    if (!IsAbout(*c) || (fault.way != Way::kBoth && fault.way != pipe.way)) return Deliver(c, pipe, pipe.end);
    const auto size = static_cast<int64_t>(pipe.end - pipe.begin);
    const int64_t before = std::exchange(seen, seen + size);
    if (struck) return Lasts(fault.kind) ? Apply(c, pipe, pipe.begin) : Deliver(c, pipe, pipe.end);
    if (seen <= fault.after_bytes) return Deliver(c, pipe, pipe.end);  // an end of the stream strikes nothing
    // The first byte behind after_bytes is in this chunk.
    size_t at = pipe.begin + static_cast<size_t>(std::max<int64_t>(fault.after_bytes - before, 0));
    if (fault.kind == Kind::kFlipChunk && at > pipe.begin) return Deliver(c, pipe, pipe.end);
    if (fault.kind == Kind::kFlipInside) {
      if (size < kLongChunk) return Deliver(c, pipe, pipe.end);
      at = pipe.begin + static_cast<size_t>(size / 2);
    }
    Strike();
    if (c->open) Apply(c, pipe, at);
  }

  void Strike() {
    {
      std::lock_guard lock(mutex);
      struck = true;
      ++counters.strikes;
    }
    struck_serial = next_serial;
    changed.notify_all();
    if (fault.kind != Kind::kCut && fault.kind != Kind::kRefuse) return;
    error_code ignored;
    if (fault.kind == Kind::kRefuse) acceptor.close(ignored);
    const std::set<Shared> all = connections;
    for (const Shared& c : all) {
      if (!IsAbout(*c)) continue;
      Close(c, /*reset=*/true);
      Count([](LinkCounters& n) { ++n.resets; });
    }
  }

  void Apply(const Shared& c, Pipe& pipe, size_t at) {
    switch (fault.kind) {
      case Kind::kFlip:
      case Kind::kFlipChunk:
      case Kind::kFlipInside:
        pipe.buffer[at] = static_cast<char>(pipe.buffer[at] ^ fault.mask);
        return Deliver(c, pipe, pipe.end);
      case Kind::kHold:
        if (at > pipe.begin) return Deliver(c, pipe, at);
        pipe.held = true;
        return;
      case Kind::kDelay:
        pipe.timer.expires_after(std::min(fault.delay, kLongestDelay));
        pipe.timer.async_wait([this, c, &pipe](error_code) { Deliver(c, pipe, pipe.end); });
        return;
      default:
        return Deliver(c, pipe, pipe.end);
    }
  }

  /// Bytes up to `until`; what lies behind is decided upon again.
  void Deliver(const Shared& c, Pipe& pipe, size_t until) {
    if (!c->open) return;
    if (pipe.begin == pipe.end) return pipe.ended ? Close(c, /*reset=*/false) : Read(c, pipe);
    const auto bytes = asio::buffer(pipe.buffer.data() + pipe.begin, until - pipe.begin);
    asio::async_write(pipe.to, bytes, [this, c, &pipe](error_code error, size_t size) {
      if (!c->open) return;
      if (error) return Close(c, /*reset=*/false);
      pipe.begin += size;
      if (pipe.begin < pipe.end) return Decide(c, pipe);
      Deliver(c, pipe, pipe.end);
    });
  }

  // ---- what the test asks for

  void Set(LinkFault next) {
    const bool refused = fault.kind == Kind::kRefuse && struck;
    fault = std::move(next);
    seen = 0;
    {
      std::lock_guard lock(mutex);
      struck = false;
    }
    if (refused) {
      const error_code error = OpenAcceptor(endpoint);
      CHECK_MSG(!error, "link proxy: cannot listen on " + address + " again: " + error.message());
    }
    const std::set<Shared> all = connections;
    const bool any = std::any_of(all.begin(), all.end(), [&](const Shared& c) { return IsAbout(*c); });
    if (any && fault.after_bytes == 0 && !Flips(fault.kind)) Strike();
    for (const Shared& c : all)
      for (Pipe* pipe : {&c->to_server, &c->to_client}) {
        if (!c->open || !std::exchange(pipe->held, false)) continue;
        Decide(c, *pipe);
      }
  }

  void Count(const std::function<void(LinkCounters&)>& change) {
    std::lock_guard lock(mutex);
    change(counters);
  }

  /// Runs `work` on the proxy's thread and waits for it.
  void Do(std::function<void()> work) {
    std::promise<void> done;
    asio::post(io, [&] {
      work();
      done.set_value();
    });
    done.get_future().wait();
  }

  const std::vector<std::string> marks;
  size_t longest_mark = 0;
  std::string address;

  // The thread's own.
  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> work = asio::make_work_guard(io);
  tcp::acceptor acceptor;
  tcp::endpoint endpoint, target;
  std::set<Shared> connections;
  int64_t next_serial = 0, struck_serial = 0;
  LinkFault fault;
  int64_t seen = 0;  // bytes that `fault` is about, since Set

  mutable std::mutex mutex;
  std::condition_variable changed;
  bool struck = false;  // written by the thread only
  LinkCounters counters;
  std::thread thread;
};

LinkProxy::LinkProxy(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

LinkProxy::~LinkProxy() {
  impl_->io.stop();
  if (impl_->thread.joinable()) impl_->thread.join();
}

StatusOr<std::unique_ptr<LinkProxy>> LinkProxy::Listen(const std::string& target,
                                                       std::vector<std::string> marks) {
  auto impl = std::make_unique<Impl>(std::move(marks));
  if (!target.empty()) {
    ASSIGN_OR_RETURN(impl->target, ParseTarget(target));
  }
  const std::string host = OwnHost(kLinkProxyHost);
  error_code error = impl->OpenAcceptor({asio::ip::make_address_v4(host), 0});
  if (!error) impl->endpoint = impl->acceptor.local_endpoint(error);
  if (error) return Unavailable("link proxy: cannot listen on " + host + ": " + error.message());
  impl->address = host + ":" + std::to_string(impl->endpoint.port());
  impl->thread = std::thread([raw = impl.get()] { raw->io.run(); });
  return std::unique_ptr<LinkProxy>(new LinkProxy(std::move(impl)));
}

const std::string& LinkProxy::address() const { return impl_->address; }

void LinkProxy::SetTarget(const std::string& target) {
  const auto parsed = ParseTarget(target);
  CHECK_MSG(parsed.ok(), StatusMessage(parsed.status()).c_str());
  impl_->Do([&] { impl_->target = *parsed; });
}

void LinkProxy::Set(LinkFault fault) {
  CHECK_MSG(fault.kind != Kind::kRefuse || fault.only.empty(),
            "connections cannot be refused by what they will say");
  impl_->Do([&] { impl_->Set(std::move(fault)); });
}

bool LinkProxy::WaitStruck(Duration at_most) {
  std::unique_lock lock(impl_->mutex);
  return impl_->changed.wait_for(lock, at_most, [&] { return impl_->struck; });
}

LinkCounters LinkProxy::counters() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->counters;
}

}  // namespace cachalot::testing

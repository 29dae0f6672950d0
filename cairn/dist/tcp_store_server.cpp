// TcpStoreServer: one thread that polls the doorkeeper and all proven connections.
// Invariant: the thread never waits for one connection, and no exception of one ends another.
#include <sys/epoll.h>

#include <array>
#include <atomic>
#include <set>
#include <thread>
#include <unordered_map>

#include "cairn/dist/doorkeeper.h"
#include "cairn/dist/join_phase.h"
#include "cairn/dist/owner.h"
#include "cairn/dist/store_connection.h"
#include "cairn/dist/store_waiters.h"
#include "cairn/dist/tcp_store.h"

namespace cairn::dist {
namespace {

// Of one connection, at a time.
constexpr size_t kMaxWaiters = 4096;
constexpr int kMaxWorldSize = 1 << 20;
// How long a machine may be out of reach before its connection ends, unless it joins with a longer
// time-out.
constexpr Milliseconds kLostAfter{30000};

// IPv4's where the machine has it.
std::string loopback() {
  std::string out = "127.0.0.1";
  for (const Interface& interface : interfaces()) {
    if (interface.address == "127.0.0.1") return interface.address;
    if (is_loopback(interface.address)) out = interface.address;
  }
  return out;
}

Socket listener_of(const TcpServerOptions& options) {
  check(options.port >= 0 && options.port <= 65535, "tcp_store: port must be 0 to 65535, got ",
        options.port);
  check(options.world_size >= 0 && options.world_size <= kMaxWorldSize,
        "tcp_store: world_size must be 0 to ", kMaxWorldSize, ", got ", options.world_size);
  check(options.max_connections >= 1, "tcp_store: max_connections must be at least 1, got ",
        options.max_connections);
  const Endpoint endpoint = resolve(options.bind.empty() ? loopback() : options.bind, options.port,
                                    Deadline(kDefaultTimeout))
                                .front();
  check(is_loopback(endpoint.address) || !options.secret.empty(),
        "tcp_store: secret must be given for ", endpoint.address,
        ", which other machines reach, got none");
  return listen_on(endpoint);
}

template <class T>
std::string bytes_of(T value) {
  std::string out;
  wire::put(out, value);
  return out;
}

}  // namespace

class TcpStoreServer::Impl {
 public:
  explicit Impl(TcpServerOptions options)
      : options_(std::move(options)),
        doorkeeper_(listener_of(options_), {options_.secret, options_.run_id, "store"}, {}),
        endpoint_(doorkeeper_.endpoint()),
        join_(options_.world_size, options_.rank),
        poll_(::epoll_create1(EPOLL_CLOEXEC)) {
    if (!poll_) throw CommError("tcp_store: a descriptor must be free, got none");
    watch(EPOLL_CTL_ADD, wakeup_.fd(), kWakeup, EPOLLIN);
    watch(EPOLL_CTL_ADD, doorkeeper_.fd(), kDoor, EPOLLIN);
    thread_ = std::thread([this] { serve(); });
  }

  ~Impl() {
    stopping_ = true;
    wakeup_.signal();
    thread_.join();
  }

  const Endpoint& endpoint() const { return endpoint_; }
  Refusals& refusals() { return doorkeeper_.refusals(); }
  int connections() const { return count_; }
  std::string_view shortage() const {
    return doorkeeper_.starved() ? "; a descriptor must be free for each on rank 0, got too few"
                                 : "";
  }

 private:
  // What epoll's events are of; connections count from kFirst.
  static constexpr uint64_t kWakeup = 0, kDoor = 1, kFirst = 2;

  struct Client {
    StoreConnection connection;
    uint32_t watched = EPOLLIN;
  };

  bool watch(int how, int fd, uint64_t id, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = id;
    return ::epoll_ctl(poll_.fd(), how, fd, &event) == 0;
  }

  void serve();
  int wait_ms() const;
  void take(Doorkeeper::Guest guest);
  void attend(uint64_t id, uint32_t events);
  void work_off(uint64_t id);
  void settle();
  void drop(uint64_t id);
  void execute(uint64_t id, StoreConnection& connection, const StoreConnection::Request& request);
  void join(uint64_t id, StoreConnection& connection, uint32_t request, wire::Reader reader);
  void hold(StoreWaiter waiter);
  void changed(std::string_view key);
  void reply(uint64_t id, uint32_t request, StoreStatus status, std::string_view body,
             StoreTable::Value value = {});
  void answer(const StoreWaiter& waiter);
  void tell(const std::vector<JoinPhase::Answer>& answers);
  void times_up();

  TcpServerOptions options_;
  Doorkeeper doorkeeper_;
  Endpoint endpoint_;
  JoinPhase join_;
  Socket poll_;
  Wakeup wakeup_;
  StoreTable table_;
  StoreWaiters waiters_;
  std::unordered_map<uint64_t, Client> clients_;
  std::set<uint64_t> touched_;  // got replies in this round
  uint64_t next_id_ = kFirst;
  std::atomic<int> count_ = 0;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

void TcpStoreServer::Impl::serve() {
  std::array<epoll_event, 64> events;
  while (!stopping_) {
    const int ready =
        ::epoll_wait(poll_.fd(), events.data(), static_cast<int>(events.size()), wait_ms());
    bool knocked = false;
    for (int i = 0; i < ready; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      if (event.data.u64 == kWakeup) wakeup_.clear();
      if (event.data.u64 == kDoor) knocked = true;
      if (event.data.u64 >= kFirst) attend(event.data.u64, event.events);
    }
    const auto next = doorkeeper_.next();
    if (knocked || (next && next->expired()))
      for (Doorkeeper::Guest& guest : doorkeeper_.step()) take(std::move(guest));
    times_up();
    settle();
  }
}

int TcpStoreServer::Impl::wait_ms() const {
  Deadline first(Milliseconds(60000));
  for (const auto& next : {waiters_.next(), join_.next(), doorkeeper_.next()})
    if (next && next->at() < first.at()) first = *next;
  return static_cast<int>(first.remaining().count());
}

void TcpStoreServer::Impl::take(Doorkeeper::Guest guest) {
  if (clients_.size() >= static_cast<size_t>(options_.max_connections)) {
    doorkeeper_.refusals().add(guest.from.address, cat("connections must be at most ",
                                                       options_.max_connections, ", got more"));
    return;
  }
  set_keep_alive(guest.socket, kLostAfter);
  const uint64_t id = next_id_++;
  if (!watch(EPOLL_CTL_ADD, guest.socket.fd(), id, EPOLLIN)) return;
  clients_.emplace(id, Client{StoreConnection(std::move(guest.socket), std::move(guest.from))});
  count_ = static_cast<int>(clients_.size());
}

void TcpStoreServer::Impl::attend(uint64_t id, uint32_t events) {
  const auto at = clients_.find(id);
  if (at == clients_.end()) return;  // dropped earlier in this round
  StoreConnection& connection = at->second.connection;
  touched_.insert(id);
  if ((events & EPOLLOUT) != 0 && !connection.flush()) return drop(id);
  if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0 && !connection.read()) return drop(id);
  work_off(id);
}

// All requests that have come whole.
void TcpStoreServer::Impl::work_off(uint64_t id) {
  StoreConnection& connection = clients_.at(id).connection;
  try {
    while (const auto request = connection.next()) execute(id, connection, *request);
  } catch (const std::exception& error) {
    // Not a request of ours, or no memory for it.
    doorkeeper_.refusals().add(connection.from().address, error.what());
    drop(id);
  }
}

// Sends what the round has brought, to all whom it concerns.
void TcpStoreServer::Impl::settle() {
  while (!touched_.empty()) {
    const uint64_t id = *touched_.begin();
    touched_.erase(touched_.begin());
    const auto at = clients_.find(id);
    if (at == clients_.end()) continue;
    StoreConnection& connection = at->second.connection;
    const bool held_up = !connection.wants_to_read();
    if (!connection.flush()) {
      drop(id);
      continue;
    }
    // Requests that waited for room may lie here already, and no event will tell.
    if (held_up && connection.wants_to_read()) {
      touched_.insert(id);
      work_off(id);
      continue;
    }
    const uint32_t events =
        (connection.wants_to_read() ? EPOLLIN : 0u) | (connection.wants_to_write() ? EPOLLOUT : 0u);
    if (events != at->second.watched) watch(EPOLL_CTL_MOD, connection.fd(), id, events);
    at->second.watched = events;
  }
}

void TcpStoreServer::Impl::drop(uint64_t id) {
  waiters_.drop(id);
  join_.leave(id);
  if (const auto at = clients_.find(id); at != clients_.end()) {
    // Closing is not enough where a forked child still holds the connection.
    watch(EPOLL_CTL_DEL, at->second.connection.fd(), id, 0);
    clients_.erase(at);
  }
  count_ = static_cast<int>(clients_.size());
}

void TcpStoreServer::Impl::reply(uint64_t id, uint32_t request, StoreStatus status,
                                 std::string_view body, StoreTable::Value value) {
  const auto at = clients_.find(id);
  if (at == clients_.end()) return;
  at->second.connection.reply(request, status, body, std::move(value));
  touched_.insert(id);
}

void TcpStoreServer::Impl::execute(uint64_t id, StoreConnection& connection,
                                   const StoreConnection::Request& request) {
  wire::Reader in(request.body);
  const uint32_t number = request.frame.id;
  const auto found = [&](StoreTable::Value value) {
    const StoreStatus status = value ? StoreStatus::ok : StoreStatus::nothing;
    reply(id, number, status, {}, std::move(value));
  };
  try {
    switch (StoreOp{request.frame.kind}) {
      case StoreOp::join:
        return join(id, connection, number, in);
      case StoreOp::set: {
        const std::string_view key = in.text(), value = in.text();
        in.end();
        table_.set(key, value);
        changed(key);
        return reply(id, number, StoreStatus::ok, {});
      }
      case StoreOp::find: {
        const std::string_view key = in.text();
        in.end();
        return found(table_.find(key));
      }
      case StoreOp::get: {
        StoreWaiter waiter{id, number, true, {std::string(in.text())}};
        waiter.timeout = Milliseconds(in.number<int64_t>());
        in.end();
        return hold(std::move(waiter));
      }
      case StoreOp::wait: {
        StoreWaiter waiter{id, number, false, {}};
        waiter.timeout = Milliseconds(in.number<int64_t>());
        for (auto left = in.number<uint32_t>(); left > 0; --left)
          waiter.keys.emplace_back(in.text());
        in.end();
        return hold(std::move(waiter));
      }
      case StoreOp::add: {
        const std::string_view key = in.text();
        const auto delta = in.number<int64_t>();
        in.end();
        const int64_t sum = table_.add(key, delta);
        changed(key);
        return reply(id, number, StoreStatus::ok, bytes_of(sum));
      }
      case StoreOp::compare_set: {
        const std::string_view key = in.text(), expected = in.text(), desired = in.text();
        in.end();
        StoreTable::Value value = table_.compare_set(key, expected, desired);
        changed(key);
        return found(std::move(value));
      }
      case StoreOp::erase: {
        const std::string_view key = in.text();
        in.end();
        return reply(id, number, StoreStatus::ok, bytes_of<int64_t>(table_.erase(key) ? 1 : 0));
      }
      case StoreOp::num_keys:
        in.end();
        return reply(id, number, StoreStatus::ok, bytes_of(table_.size()));
    }
  } catch (const CommError&) {
    throw;  // what came is not a request
  } catch (const Error& error) {
    return reply(id, number, StoreStatus::error, error.what());
  }
  throw CommError(cat("store: operation must be a known one, got number ", request.frame.kind));
}

void TcpStoreServer::Impl::join(uint64_t id, StoreConnection& connection, uint32_t request,
                                wire::Reader reader) {
  JoinPhase::Member member;
  member.owner = id;
  member.request = request;
  member.rank = reader.number<int32_t>();
  member.world_size = reader.number<int32_t>();
  member.timeout = Milliseconds(reader.number<int64_t>());
  reader.end();
  check(member.world_size >= 1 && member.world_size <= kMaxWorldSize,
        "tcp_store: world_size must be 1 to ", kMaxWorldSize, ", got ", member.world_size);
  set_keep_alive(connection.socket(), std::max(kLostAfter, sane(member.timeout)));
  member.from = connection.from();
  member.deadline = Deadline(sane(member.timeout));
  tell(join_.join(std::move(member)));
}

void TcpStoreServer::Impl::hold(StoreWaiter waiter) {
  for (const std::string& key : waiter.keys) check_key(key);
  check(waiters_.count(waiter.owner) < kMaxWaiters, "store: a process must wait in at most ",
        kMaxWaiters, " calls at a time, got one more");
  waiter.deadline = Deadline(sane(waiter.timeout));
  if (const auto now = waiters_.add(std::move(waiter), table_)) answer(*now);
}

void TcpStoreServer::Impl::answer(const StoreWaiter& waiter) {
  if (waiter.wants_value)
    reply(waiter.owner, waiter.request, StoreStatus::ok, {}, table_.find(waiter.keys.front()));
  else
    reply(waiter.owner, waiter.request, StoreStatus::ok, {});
}

void TcpStoreServer::Impl::changed(std::string_view key) {
  for (const StoreWaiter& waiter : waiters_.key_set(key, table_)) answer(waiter);
}

void TcpStoreServer::Impl::tell(const std::vector<JoinPhase::Answer>& answers) {
  for (const JoinPhase::Answer& to : answers)
    reply(to.owner, to.request, to.text.empty() ? StoreStatus::ok : StoreStatus::comm_error,
          to.text);
}

void TcpStoreServer::Impl::times_up() {
  for (const StoreWaiter& waiter : waiters_.expired()) {
    std::vector<std::string> missing;
    for (const std::string& key : waiter.keys)
      if (!table_.find(key)) missing.push_back(key);
    reply(waiter.owner, waiter.request, StoreStatus::comm_error,
          not_set(missing, waiter.timeout).what());
  }
  tell(join_.expired(shortage()));
}

TcpStoreServer::TcpStoreServer(TcpServerOptions options)
    : impl_(make_owned<Impl>(std::move(options))) {}
TcpStoreServer::~TcpStoreServer() = default;

const std::string& TcpStoreServer::address() const { return impl_->endpoint().address; }
int TcpStoreServer::port() const { return impl_->endpoint().port; }
std::vector<std::string> TcpStoreServer::refusals() const { return impl_->refusals().texts(); }
uint64_t TcpStoreServer::refusal_count() const { return impl_->refusals().count(); }
int TcpStoreServer::connections() const { return impl_->connections(); }
std::string_view TcpStoreServer::shortage() const { return impl_->shortage(); }

}  // namespace cairn::dist

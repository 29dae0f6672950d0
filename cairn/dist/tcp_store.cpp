// The store over TCP: its client.
#include "cairn/dist/tcp_store.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>

#include "cairn/dist/auth.h"
#include "cairn/dist/owner.h"
#include "cairn/dist/store_wire.h"

namespace cairn::dist {
namespace {

// What the server's own answer to a time-out may come late.
constexpr Milliseconds kGrace{2000};
constexpr Milliseconds kLostAfter{30000};

// One connection. Requests of all threads go out as they come; a thread of the store reads the
// replies, which come in any order, so that none waits for another's.
class Client : public TcpStore {
 public:
  Client(Socket socket, Milliseconds timeout, std::shared_ptr<TcpStoreServer> server)
      : timeout_(timeout),
        server_(std::move(server)),
        socket_(std::move(socket)),
        local_(socket_.local()),
        peer_(socket_.peer()) {
    // A wait may last as long as its time-out, whatever happens to the network meanwhile.
    set_keep_alive(socket_, std::max(kLostAfter, timeout_));
    reader_ = std::thread([this] { read_replies(); });
  }
  ~Client() override {
    socket_.shut_down();
    reader_.join();
  }

  void join(int rank, int world_size, const Deadline& deadline);

  void set(std::string_view key, std::string_view value, Milliseconds timeout) override;
  std::string get(std::string_view key, Milliseconds timeout) override;
  std::optional<std::string> find(std::string_view key, Milliseconds timeout) override;
  int64_t add(std::string_view key, int64_t delta) override;
  void wait(std::span<const std::string> keys, Milliseconds timeout) override;
  std::string compare_set(std::string_view key, std::string_view expected,
                          std::string_view desired) override;
  bool delete_key(std::string_view key) override;
  int64_t num_keys() override;

  std::string server_address() const override { return peer_.address; }
  int server_port() const override { return peer_.port; }
  std::string local_address() const override { return local_.address; }
  const TcpStoreServer* server() const override { return server_.get(); }

 private:
  struct Reply {
    bool come = false;
    StoreStatus status = StoreStatus::ok;
    std::string body;
    std::condition_variable changed;
  };

  using Answer = std::pair<StoreStatus, std::string>;

  // Sends a request and waits for its reply: its status and body. Throws what the server reports.
  Answer call(StoreOp op, const std::string& body, Milliseconds longest);
  Answer call(StoreOp op, const std::string& body) { return call(op, body, own_wait()); }
  // Of requests that the server itself ends.
  Answer call_until(StoreOp op, const std::string& body, Milliseconds timeout) {
    return call(op, body, sane(timeout) + kGrace);
  }
  // Of who has little time: a server that was silent is not waited for until it is heard of again.
  // The request goes out all the same, if there is room for it.
  Answer call_briefly(StoreOp op, const std::string& body, Milliseconds timeout);
  Milliseconds own_wait() const { return timeout_ + kGrace; }
  int64_t call_number(StoreOp op, const std::string& body);
  Transfer send(StoreOp op, uint32_t id, const std::string& body, const Deadline& deadline);
  void read_replies();
  void end(const std::string& why);
  std::string no_server() const {
    return cat("store: server at ", peer_, " must be there, got the connection's end");
  }

  const Owner owner_;
  const Milliseconds timeout_;
  // Outlives the connection, which is closed before.
  const std::shared_ptr<TcpStoreServer> server_;
  Socket socket_;
  const Endpoint local_, peer_;
  std::timed_mutex sending_;  // of what follows, and of the order of frames
  // The rest of a frame whose sender ran out of time: it goes before the next one.
  std::string unsent_;
  std::mutex mutex_;  // of what follows
  std::unordered_map<uint32_t, Reply*> waiting_;
  uint32_t next_id_ = 0;
  std::string ended_;    // why
  bool silent_ = false;  // a wait was in vain, and no reply has come since
  std::thread reader_;
};

Client::Answer Client::call(StoreOp op, const std::string& body, Milliseconds longest) {
  check(body.size() <= StoreFrame::kMaxBody, "store: request must have at most ",
        StoreFrame::kMaxBody, " bytes, got ", body.size());
  owner_.check_here("one", "store: connection to ", peer_);
  const Deadline deadline(longest);
  Reply reply;
  std::unique_lock lock(mutex_);
  if (!ended_.empty()) throw CommError(ended_);
  const uint32_t id = next_id_++;
  waiting_.emplace(id, &reply);
  lock.unlock();
  const Transfer sent = send(op, id, body, deadline);
  if (sent == Transfer::closed) end(no_server());
  lock.lock();
  if (sent == Transfer::timed_out && !reply.come && ended_.empty()) {
    waiting_.erase(id);
    silent_ = true;
    throw CommError(cat("store: server at ", peer_, " must take a request of ", body.size(),
                        " bytes within ", in_words(longest), ", got no room for it"));
  }
  reply.changed.wait_until(lock, deadline.at(), [&] { return reply.come || !ended_.empty(); });
  waiting_.erase(id);
  silent_ = silent_ || !reply.come;
  if (!reply.come)
    throw CommError(!ended_.empty() ? ended_
                                    : cat("store: server at ", peer_, " must answer within ",
                                          in_words(longest), ", got nothing"));
  if (reply.status == StoreStatus::error) throw Error(reply.body);
  if (reply.status == StoreStatus::comm_error) throw CommError(reply.body);
  return {reply.status, std::move(reply.body)};
}

Client::Answer Client::call_briefly(StoreOp op, const std::string& body, Milliseconds timeout) {
  if (timeout >= own_wait() || !owner_.here()) return call(op, body);
  std::unique_lock lock(mutex_);
  if (silent_) timeout = Milliseconds(0);
  lock.unlock();
  return call(op, body, timeout);
}

// done, closed or timed_out. What is left of a frame then is sent by the next call, so that nobody
// finds the connection in the midst of one; a frame of which nothing is out is forgotten.
Transfer Client::send(StoreOp op, uint32_t id, const std::string& body, const Deadline& deadline) {
  const std::unique_lock lock(sending_, deadline.at());
  if (!lock) return Transfer::timed_out;
  const size_t before = unsent_.size();
  unsent_ +=
      wire::head_of({static_cast<uint32_t>(body.size()), id, static_cast<uint32_t>(op)}) + body;
  size_t sent = 0;
  Transfer now = Transfer::done;
  while (now == Transfer::done && sent < unsent_.size()) {
    size_t moved = 0;
    now = socket_.send_some(std::as_bytes(std::span(unsent_)).subspan(sent), moved);
    sent += moved;
    if (now == Transfer::again) now = socket_.wait_writable(deadline);
  }
  if (now == Transfer::timed_out && sent <= before) unsent_.resize(before);
  std::string(unsent_, sent).swap(unsent_);  // which gives the memory of a large one back
  return now;
}

void Client::end(const std::string& why) {
  socket_.shut_down();
  const std::lock_guard lock(mutex_);
  if (ended_.empty()) ended_ = why;
  for (const auto& [id, reply] : waiting_) reply->changed.notify_all();
}

void Client::read_replies() {
  // As good as without an end: whoever waits for a reply has a deadline of its own.
  const Deadline never(sane(Milliseconds::max()));
  const auto receive = [&](std::span<char> bytes) {
    return socket_.recv_all(std::as_writable_bytes(bytes), never) == Transfer::done;
  };
  char head[StoreFrame::kHead];
  while (receive(head)) {
    const StoreFrame frame = wire::frame_of(head);
    if (frame.bytes > StoreFrame::kMaxBody) break;
    std::string body(frame.bytes, '\0');
    if (!receive(body)) break;
    const std::lock_guard lock(mutex_);
    silent_ = false;
    const auto at = waiting_.find(frame.id);
    if (at == waiting_.end()) continue;  // given up
    at->second->come = true;
    at->second->status = StoreStatus{frame.kind};
    at->second->body = std::move(body);
    at->second->changed.notify_all();
  }
  end(no_server());
}

int64_t Client::call_number(StoreOp op, const std::string& body) {
  const auto [status, result] = call(op, body);
  return wire::Reader(result).number<int64_t>();
}

void Client::join(int rank, int world_size, const Deadline& deadline) {
  std::string body;
  wire::put<int32_t>(body, rank);
  wire::put<int32_t>(body, world_size);
  wire::put<int64_t>(body, timeout_.count());
  call_until(StoreOp::join, body, deadline.remaining());
}

void Client::set(std::string_view key, std::string_view value, Milliseconds timeout) {
  check_key(key);
  check_value(value);
  std::string body;
  wire::put_text(body, key);
  wire::put_text(body, value);
  call_briefly(StoreOp::set, body, timeout);
}

std::string Client::get(std::string_view key, Milliseconds timeout) {
  check_key(key);
  std::string body;
  wire::put_text(body, key);
  wire::put<int64_t>(body, timeout.count());
  return call_until(StoreOp::get, body, timeout).second;
}

std::optional<std::string> Client::find(std::string_view key, Milliseconds timeout) {
  check_key(key);
  std::string body;
  wire::put_text(body, key);
  auto [status, value] = call_briefly(StoreOp::find, body, timeout);
  if (status == StoreStatus::nothing) return std::nullopt;
  return std::move(value);
}

int64_t Client::add(std::string_view key, int64_t delta) {
  check_key(key);
  std::string body;
  wire::put_text(body, key);
  wire::put<int64_t>(body, delta);
  return call_number(StoreOp::add, body);
}

void Client::wait(std::span<const std::string> keys, Milliseconds timeout) {
  std::string body;
  wire::put<int64_t>(body, timeout.count());
  wire::put(body, static_cast<uint32_t>(keys.size()));
  for (const std::string& key : keys) {
    check_key(key);
    wire::put_text(body, key);
  }
  call_until(StoreOp::wait, body, timeout);
}

std::string Client::compare_set(std::string_view key, std::string_view expected,
                                std::string_view desired) {
  check_key(key);
  check_value(expected);
  check_value(desired);
  std::string body;
  wire::put_text(body, key);
  wire::put_text(body, expected);
  wire::put_text(body, desired);
  return call(StoreOp::compare_set, body).second;
}

bool Client::delete_key(std::string_view key) {
  check_key(key);
  std::string body;
  wire::put_text(body, key);
  return call_number(StoreOp::erase, body) != 0;
}

int64_t Client::num_keys() { return call_number(StoreOp::num_keys, {}); }

// Where the server listens if nothing is said but the host by which it is reached.
std::string own_loopback(const std::string& host, const Deadline& deadline) {
  std::string out;
  for (const Endpoint& endpoint : resolve(host, 0, deadline)) {
    check(is_loopback(endpoint.address), "tcp_store: bind must say on which address to listen for ",
          host, " (", endpoint.address, "), got none. Without it only loopback can be listened on");
    const bool v4 = endpoint.address.find(':') == std::string::npos;
    if (out.empty() || v4) out = endpoint.address;
  }
  return out;
}

std::shared_ptr<TcpStoreServer> start_server(const TcpStoreOptions& options,
                                             const Deadline& deadline) {
  return std::make_shared<TcpStoreServer>(TcpServerOptions{
      .bind = options.bind.empty() ? own_loopback(options.host, deadline) : options.bind,
      .port = options.port,
      .world_size = options.world_size,
      .rank = options.rank,
      .run_id = options.run_id,
      .secret = options.secret,
  });
}

// A server that ends the connection may be short of room, or be just starting or ending.
Socket connect_proven(const std::string& host, int port, const TcpStoreOptions& options,
                      const Deadline& deadline) {
  constexpr Milliseconds kPause{50};
  while (true) {
    Socket socket = connect_to(host, port, deadline.remaining(),
                               "; the run's store, which rank 0 keeps, must be there");
    try {
      authenticate(socket, Side::client, {options.secret, options.run_id, "store"}, {}, deadline,
                   cat("tcp_store: ", socket.peer()));
      return socket;
    } catch (const RefusedError&) {
      throw;
    } catch (const CommError&) {
      if (deadline.remaining() <= kPause) throw;
    }
    std::this_thread::sleep_for(kPause);
  }
}

void check_options(const TcpStoreOptions& o) {
  check(o.world_size >= 0, "tcp_store: world_size must be at least 0, got ", o.world_size);
  const int ranks = std::max(o.world_size, 1);
  check(o.rank >= 0 && o.rank < ranks, "tcp_store: rank must be below the world size ",
        o.world_size, ", got ", o.rank);
  check(o.port >= (o.is_server ? 0 : 1) && o.port <= 65535, "tcp_store: port must be ",
        o.is_server ? 0 : 1, " to 65535, got ", o.port);
  check(o.timeout > Milliseconds(0), "tcp_store: timeout must be above 0 ms, got ",
        o.timeout.count());
}

}  // namespace

std::shared_ptr<TcpStore> tcp_store(TcpStoreOptions options) {
  check_options(options);
  options.timeout = sane(options.timeout);
  const Deadline deadline(options.timeout);
  std::shared_ptr<TcpStoreServer> server;
  std::string host = options.host;
  if (options.is_server) {
    server = start_server(options, deadline);
    host = server->address();
    // Listening everywhere includes loopback.
    if (is_wildcard(host)) host = host == "::" ? "::1" : "127.0.0.1";
    options.port = server->port();
  }
  Socket socket;
  try {
    socket = connect_proven(host, options.port, options, deadline);
  } catch (const CommError& error) {
    if (!server) throw;
    throw CommError(cat(error.what(), server->shortage()));
  }
  auto client = make_owned<Client>(std::move(socket), options.timeout, std::move(server));
  if (options.world_size > 0) client->join(options.rank, options.world_size, deadline);
  return client;
}

}  // namespace cairn::dist

// The store over TCP: a server in one process of the run, clients in all of them.
// Invariant: only who proves the run's secret and id is served; everybody else is dropped, and
// costs little; nothing is reachable from other machines unless an address for that is given.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cairn/dist/store.h"

namespace cairn::dist {

struct TcpServerOptions {
  // An address, host name or network interface of this machine ("10.0.0.1", "eth0") on which to
  // listen. Default: loopback. "0.0.0.0" and "::" mean all addresses.
  std::string bind = {};
  int port = 0;  // 0: a free one
  // How many ranks are to join; 0: the first one tells.
  int world_size = 0;
  int rank = 0;  // this process's, for texts
  std::string run_id = {};
  // Must not be empty where the server is reachable from other machines.
  std::string secret = {};
  // More proven connections than this are not taken.
  int max_connections = 4096;
};

// Serves from its construction until its destruction, on a thread of its own.
class TcpStoreServer {
 public:
  // CommError `listen: port 29500 of 127.0.0.1 must be free, got one in use`; Error for options.
  explicit TcpStoreServer(TcpServerOptions options);
  ~TcpStoreServer();
  TcpStoreServer(const TcpStoreServer&) = delete;
  TcpStoreServer& operator=(const TcpStoreServer&) = delete;

  // Where it listens; numeric.
  const std::string& address() const;
  int port() const;
  // Who was turned away and why: one sentence for each address and reason, with how often.
  std::vector<std::string> refusals() const;
  uint64_t refusal_count() const;
  // Connections that are served now.
  int connections() const;
  // What to add to the error of who waits for others: "" unless there was ever no descriptor for
  // somebody who came.
  std::string_view shortage() const;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

struct TcpStoreOptions {
  // Where the server is, as this process reaches it: a name or an address. On the server itself
  // only looked at where `bind` says nothing: it must then be of loopback, and is listened on.
  std::string host = "127.0.0.1";
  // On the server 0 stands for a free one.
  int port = 0;
  bool is_server = false;
  std::string bind = {};  // see TcpServerOptions
  // Above 0: tcp_store() returns once this many ranks have called it, and `rank` is this one's.
  int world_size = 0;
  int rank = 0;
  // The same on all ranks.
  std::string run_id = {}, secret = {};
  // Of joining, and of the server's answers.
  Milliseconds timeout = kDefaultTimeout;
};

// When the server's process dies, every call that waits throws CommError at once, and so does
// every later one.
class TcpStore : public Store {
 public:
  // The server, as it is reached; numeric.
  virtual std::string server_address() const = 0;
  virtual int server_port() const = 0;
  // This process's address on the way to the server: what others of the run can reach it by, unless
  // it is loopback. Numeric.
  virtual std::string local_address() const = 0;
  // The server in this process, or null.
  virtual const TcpStoreServer* server() const = 0;
};

// Connects, trying again until the timeout while nobody listens yet. All ranks get one and the same
// CommError where world sizes differ or a rank comes twice (at once), and where ranks are missing:
// `tcp_store: all ranks must join within 60 s, got 3/4 joined, missing [2]`. A server of another
// run, or with another secret, is a CommError at once; so is a host name that has no address.
std::shared_ptr<TcpStore> tcp_store(TcpStoreOptions options);

}  // namespace cairn::dist

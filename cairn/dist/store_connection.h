// StoreConnection: the server's end of a proven connection: frames in, replies out, no waiting.
// Invariant: memory is bounded. Input grows only as bytes come, up to one frame and one read;
// while many replies wait to be taken, no further request is read.
#pragma once

#include <deque>
#include <optional>
#include <string>

#include "cairn/dist/socket.h"
#include "cairn/dist/store_wire.h"

namespace cairn::dist {

class StoreConnection {
 public:
  StoreConnection(Socket socket, Endpoint from)
      : socket_(std::move(socket)), from_(std::move(from)) {}

  const Socket& socket() const { return socket_; }
  int fd() const { return socket_.fd(); }
  const Endpoint& from() const { return from_; }

  // Takes what has come; false when the connection has ended.
  bool read();
  struct Request {
    StoreFrame frame;
    std::string body;
  };
  // The next whole request, if there is one and replies are being taken. CommError where what has
  // come is not a request.
  std::optional<Request> next();

  // Queues a reply; the value, where there is one, is its body.
  void reply(uint32_t id, StoreStatus status, std::string_view body, StoreTable::Value value = {});
  // Sends what can be sent; false when the connection has ended.
  bool flush();

  bool wants_to_read() const { return out_bytes_ < kMaxQueued; }
  bool wants_to_write() const { return !out_.empty(); }

 private:
  static constexpr size_t kMaxQueued = size_t{1} << 20;
  static constexpr size_t kRead = size_t{64} << 10;

  struct Piece {
    std::string text;
    StoreTable::Value value;  // instead of the text
    size_t sent = 0;
    const std::string& bytes() const { return value ? *value : text; }
  };

  void queue(Piece piece);

  Socket socket_;
  Endpoint from_;
  std::string in_;
  size_t in_used_ = 0;  // bytes of in_ that are done with
  std::deque<Piece> out_;
  size_t out_bytes_ = 0;
};

}  // namespace cairn::dist

// Somebody between two ranks of a ring: hands their handshake on as it is, then, frame by frame,
// what a test makes of each.
// Invariant: the ranks know nothing of it; what one sends reaches the other through the change
// only.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "cairn/dist/socket.h"
#include "cairn/dist/store.h"

namespace cairn::test {

class Middleman {
 public:
  // What becomes of a frame, numbered by direction (forth: to the one that listens); nothing: the
  // connection breaks off after `frame` as the function left it. Called by a thread per direction.
  using Change =
      std::function<std::optional<std::string>(bool forth, int number, std::string& frame)>;

  // Between whoever connects and this port. Bytes go out in pieces of `piece` at most.
  Middleman(int port, Change change, size_t piece);
  ~Middleman();
  int port() const { return port_; }

 private:
  void serve();
  void hand_on(dist::Socket& from, dist::Socket& to, bool forth);
  bool send(dist::Socket& to, std::string_view bytes) const;
  bool hand_on_frames(std::string& bytes, int& number, dist::Socket& to, bool forth);

  const int target_;
  const Change change_;
  const size_t piece_;
  dist::Socket listener_, client_, server_;
  int port_ = 0;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

// A store for rank 1 of a ring in which rank 0 seems to listen where a middleman does.
class DivertedStore : public dist::ForwardingStore {
 public:
  DivertedStore(std::shared_ptr<dist::Store> store, Middleman::Change change,
                size_t piece = size_t{1} << 20)
      : ForwardingStore(std::move(store)), change_(std::move(change)), piece_(piece) {}

  std::string get(std::string_view key, dist::Milliseconds timeout) override;

 private:
  const Middleman::Change change_;
  const size_t piece_;
  std::unique_ptr<Middleman> middleman_;
};

}  // namespace cairn::test

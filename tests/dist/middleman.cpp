// See middleman.h.
#include "tests/dist/middleman.h"

#include <sys/socket.h>

#include <cstring>
#include <vector>

#include "tests/dist/net_support.h"

namespace cairn::test {

using namespace dist;

namespace {

constexpr Milliseconds kStep{20};
// How frames begin, and what of the header a middleman has to know.
constexpr std::string_view kMagic = "CIRN";
constexpr size_t kHeader = 48, kLengthAt = 4;

size_t frame_size(std::string_view bytes) {
  uint32_t length = 0;
  std::memcpy(&length, bytes.data() + kLengthAt, sizeof length);
  return kHeader + length;
}

}  // namespace

Middleman::Middleman(int port, Change change, size_t piece)
    : target_(port),
      change_(std::move(change)),
      piece_(piece),
      listener_(listen_on({"127.0.0.1", 0})),
      port_(listener_.local().port),
      thread_([this] { serve(); }) {}

Middleman::~Middleman() {
  stop_ = true;
  thread_.join();
}

void Middleman::serve() {
  while (!stop_ && !client_)
    if (listener_.wait_readable(Deadline(kStep)) == Transfer::done)
      client_ = accept_from(listener_);
  if (!client_) return;
  server_ = stranger(target_);
  std::thread back([this] { hand_on(server_, client_, false); });
  hand_on(client_, server_, true);
  back.join();
}

bool Middleman::send(Socket& to, std::string_view bytes) const {
  for (size_t at = 0; at < bytes.size(); at += piece_) {
    const std::string_view piece = bytes.substr(at, piece_);
    if (to.send_all(std::as_bytes(std::span(piece)), Deadline(std::chrono::seconds(20))) !=
        Transfer::done)
      return false;
  }
  return true;
}

// The whole frames at the beginning of `bytes`. False where the connection is to break off.
bool Middleman::hand_on_frames(std::string& bytes, int& number, Socket& to, bool forth) {
  while (bytes.size() >= kHeader && bytes.size() >= frame_size(bytes)) {
    std::string frame = bytes.substr(0, frame_size(bytes));
    bytes.erase(0, frame.size());
    const std::optional<std::string> changed = change_(forth, number++, frame);
    if (!send(to, changed.value_or(frame)) || !changed) return false;
  }
  return true;
}

void Middleman::hand_on(Socket& from, Socket& to, bool forth) {
  std::vector<std::byte> buffer(size_t{1} << 20);
  std::string bytes;
  bool frames = false;
  int number = 0;
  while (!stop_) {
    if (from.wait_readable(Deadline(kStep)) != Transfer::done) continue;
    size_t moved = 0;
    const Transfer now = from.recv_some(buffer, moved);
    if (now == Transfer::again) continue;
    if (now != Transfer::done) break;
    bytes.append(reinterpret_cast<const char*>(buffer.data()), moved);
    if (!frames) {
      const size_t begin = bytes.find(kMagic);
      frames = begin != std::string::npos;
      if (!send(to, bytes.substr(0, begin))) break;
      bytes.erase(0, begin);
    }
    if (frames && !hand_on_frames(bytes, number, to, forth)) {
      from.shut_down();
      to.shut_down();
      return;
    }
  }
  ::shutdown(to.fd(), SHUT_WR);
}

std::string DivertedStore::get(std::string_view key, Milliseconds timeout) {
  std::string value = store_->get(key, timeout);
  if (!key.ends_with("/ring/0")) return value;
  // "PORT ADDRESS MACHINE"
  const size_t end = value.find(' ');
  if (!middleman_)
    middleman_ = std::make_unique<Middleman>(std::stoi(value.substr(0, end)), change_, piece_);
  return std::to_string(middleman_->port()) + value.substr(end);
}

}  // namespace cairn::test

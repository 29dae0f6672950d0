// Link: one connection between two ranks, and the frames that travel on it.
// Invariant: a frame is taken only if it is whole, unchanged, the next in number and of the call
// and length that are expected; nothing that the peer says decides how much is read or where to.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cairn/dist/socket.h"

namespace cairn::dist {

// A stretch of memory.
struct Piece {
  std::byte* data = nullptr;
  size_t size = 0;
};

// Where a frame stands.
enum class Progress : uint8_t {
  done,
  again,      // nothing can be moved at the moment
  closed,     // the connection ended
  damaged,    // see Link::damage()
  different,  // the peer is in another call
};

class Link {
 public:
  explicit Link(Socket socket);

  int fd() const { return socket_.fd(); }

  // A frame of the call with this fingerprint. The last one must be out. The memory must stay as it
  // is until push() is done.
  void begin_send(uint64_t call, std::span<const Piece> payload);
  // An empty frame that says something about the call (not 0) before its first frame.
  void begin_note(uint64_t call, uint64_t note);
  bool sending() const { return out_left_ > 0; }
  Progress push();

  // Expects a frame of exactly these bytes. Notes before it are skipped.
  void begin_recv(uint64_t call, std::span<const Piece> payload);
  bool receiving() const { return receiving_; }
  Progress pull();
  // The note of the call, if the next frame is one (and takes it), else 0 (and leaves it).
  Progress pull_note(uint64_t call, uint64_t& note);

  // What is wrong with a frame, as the end of a sentence: "frame 17 must have …, got …".
  const std::string& damage() const { return damage_; }

  // Takes what came and is not wanted any more, so that closing does not throw away what the peer
  // has not taken yet.
  void drain() noexcept;
  // Sends no more; the peer sees the end behind what was sent.
  void end() noexcept;
  void close() noexcept { socket_.close(); }

 private:
  struct Header {
    uint32_t magic = 0;
    uint32_t length = 0;        // of the payload, in bytes
    uint64_t number = 0;        // of the frame in its direction, from 0
    uint64_t call = 0;          // fingerprint
    uint64_t note = 0;          // 0 for frames with payload
    uint64_t payload_hash = 0;  // of no bytes where there are none
    uint64_t header_hash = 0;   // of all that stands before it
  };
  // Payloads up to this many bytes are read along with their header.
  static constexpr size_t kSmall = 16 << 10;

  void start(uint64_t call, uint64_t note, std::span<const Piece> payload, size_t length);
  Progress recv_into(std::span<const Piece> pieces, size_t skip, std::span<std::byte> rest,
                     size_t& moved);
  Progress read_header(size_t along);
  Progress check_header(uint64_t call);
  Progress damaged(std::string text);
  Progress take_payload();

  Socket socket_;

  Header out_;
  std::vector<Piece> out_pieces_;  // without the header
  size_t out_size_ = 0, out_left_ = 0;
  uint64_t sent_ = 0;

  bool receiving_ = false;
  uint64_t in_call_ = 0;
  std::vector<Piece> in_pieces_;
  size_t in_size_ = 0, in_got_ = 0;
  bool in_header_ = false;  // checked, and taken out of the buffer
  Header in_;
  uint64_t received_ = 0;
  // What was read and not taken: a header, perhaps a small payload.
  std::array<std::byte, sizeof(Header) + kSmall> buffer_;
  size_t buffered_ = 0;

  std::string damage_;
};

}  // namespace cairn::dist

// Link: frames out and in.
#include "cairn/dist/link.h"

#include <sys/socket.h>
#include <sys/uio.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace cairn::dist {
namespace {

constexpr uint32_t kMagic = 0x4e524943;  // "CIRN"
// Pieces of one system call; the kernel takes at most 1024.
constexpr size_t kPieces = 64;

uint64_t hash_of(std::span<const Piece> pieces) {
  if (pieces.size() == 1) return XXH3_64bits(pieces[0].data, pieces[0].size);
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (const Piece& piece : pieces) XXH3_64bits_update(&state, piece.data, piece.size);
  return XXH3_64bits_digest(&state);
}

// The pieces behind the first `skip` bytes, as many as fit.
size_t gather(std::span<const Piece> pieces, size_t skip, std::span<iovec> out) {
  size_t count = 0;
  for (const Piece& piece : pieces) {
    if (skip >= piece.size) {
      skip -= piece.size;
      continue;
    }
    if (count == out.size()) break;
    out[count++] = {piece.data + skip, piece.size - skip};
    skip = 0;
  }
  return count;
}

Progress ended(ssize_t result, size_t& moved) {
  moved = result > 0 ? static_cast<size_t>(result) : 0;
  if (result > 0) return Progress::done;
  const bool later = result < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
  return later ? Progress::again : Progress::closed;
}

}  // namespace

Link::Link(Socket socket) : socket_(std::move(socket)) {}

void Link::start(uint64_t call, uint64_t note, std::span<const Piece> payload, size_t length) {
  out_ = {.magic = kMagic,
          .length = static_cast<uint32_t>(length),
          .number = sent_++,
          .call = call,
          .note = note,
          .payload_hash = hash_of(payload)};
  out_.header_hash = XXH3_64bits(&out_, offsetof(Header, header_hash));
  out_size_ = out_left_ = sizeof out_ + length;
}

void Link::begin_send(uint64_t call, std::span<const Piece> payload) {
  out_pieces_.assign(payload.begin(), payload.end());
  size_t length = 0;
  for (const Piece& piece : payload) length += piece.size;
  start(call, 0, payload, length);
}

void Link::begin_note(uint64_t call, uint64_t note) {
  out_pieces_.clear();
  start(call, note, {}, 0);
}

Progress Link::push() {
  while (out_left_ > 0) {
    iovec parts[kPieces + 1];
    size_t count = 0, sent = out_size_ - out_left_;
    if (sent < sizeof out_) {
      parts[count++] = {reinterpret_cast<std::byte*>(&out_) + sent, sizeof out_ - sent};
      sent = sizeof out_;
    }
    count += gather(out_pieces_, sent - sizeof out_, std::span(parts).subspan(count, kPieces));
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = count;
    ssize_t result = 0;
    do {
      result = ::sendmsg(socket_.fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (result < 0 && errno == EINTR);
    size_t moved = 0;
    const Progress now = ended(result, moved);
    if (now != Progress::done) return now;
    out_left_ -= moved;
  }
  return Progress::done;
}

void Link::begin_recv(uint64_t call, std::span<const Piece> payload) {
  in_call_ = call;
  in_pieces_.assign(payload.begin(), payload.end());
  in_size_ = in_got_ = 0;
  for (const Piece& piece : payload) in_size_ += piece.size;
  in_header_ = false;
  receiving_ = true;
}

Progress Link::recv_into(std::span<const Piece> pieces, size_t skip, std::span<std::byte> rest,
                         size_t& moved) {
  iovec parts[kPieces + 1];
  size_t count = gather(pieces, skip, std::span(parts).first(kPieces));
  size_t listed = 0;
  for (size_t i = 0; i < count; ++i) listed += parts[i].iov_len;
  // What comes behind the payload, unless there were too many pieces for all of it.
  if (!rest.empty() && skip + listed == in_size_) parts[count++] = {rest.data(), rest.size()};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = count;
  ssize_t result = 0;
  do {
    result = ::recvmsg(socket_.fd(), &message, MSG_DONTWAIT);
  } while (result < 0 && errno == EINTR);
  return ended(result, moved);
}

Progress Link::damaged(std::string text) {
  damage_ = cat("frame ", received_, " must ", text);
  return Progress::damaged;
}

// Reads until the buffer holds a header; `along` more bytes may come with it.
Progress Link::read_header(size_t along) {
  while (buffered_ < sizeof in_) {
    const size_t want = sizeof in_ + along - buffered_;
    size_t moved = 0;
    const Progress now =
        recv_into({}, in_size_, std::span(buffer_).subspan(buffered_, want), moved);
    if (now != Progress::done) return now;
    buffered_ += moved;
  }
  std::memcpy(&in_, buffer_.data(), sizeof in_);
  return Progress::done;
}

Progress Link::check_header(uint64_t call) {
  if (in_.magic != kMagic || in_.header_hash != XXH3_64bits(&in_, offsetof(Header, header_hash)))
    return damaged("begin with an unchanged header, got other bytes");
  if (in_.number != received_) return damaged(cat("be the next one, got frame ", in_.number));
  if (in_.call != call) return Progress::different;
  return Progress::done;
}

Progress Link::pull() {
  while (!in_header_) {
    Progress now = read_header(in_size_ <= kSmall ? in_size_ : 0);
    if (now == Progress::done) now = check_header(in_call_);
    if (now != Progress::done) return now;
    buffered_ -= sizeof in_;
    std::memmove(buffer_.data(), buffer_.data() + sizeof in_, buffered_);
    if (in_.note != 0) {
      ++received_;
      continue;
    }
    if (in_.length != in_size_) return damaged(cat("hold ", in_size_, " bytes, got ", in_.length));
    in_header_ = true;
  }
  return take_payload();
}

Progress Link::take_payload() {
  // What came along with the header.
  while (buffered_ > 0 && in_got_ < in_size_) {
    iovec to{};
    gather(in_pieces_, in_got_, std::span(&to, 1));
    const size_t size = std::min(buffered_, to.iov_len);
    std::memcpy(to.iov_base, buffer_.data(), size);
    buffered_ -= size;
    std::memmove(buffer_.data(), buffer_.data() + size, buffered_);
    in_got_ += size;
  }
  while (in_got_ < in_size_) {
    size_t moved = 0;
    // The next frame's header comes along.
    const Progress now =
        recv_into(in_pieces_, in_got_, std::span(buffer_).first(sizeof in_), moved);
    if (now != Progress::done) return now;
    const size_t mine = std::min(moved, in_size_ - in_got_);
    in_got_ += mine;
    buffered_ = moved - mine;
  }
  if (in_.payload_hash != hash_of(in_pieces_)) return damaged("arrive unchanged, got other bytes");
  ++received_;
  receiving_ = false;
  return Progress::done;
}

Progress Link::pull_note(uint64_t call, uint64_t& note) {
  in_size_ = 0;
  Progress now = read_header(0);
  if (now == Progress::done) now = check_header(call);
  if (now != Progress::done) return now;
  note = in_.note;
  if (note == 0) return Progress::done;
  ++received_;
  buffered_ -= sizeof in_;
  std::memmove(buffer_.data(), buffer_.data() + sizeof in_, buffered_);
  return Progress::done;
}

void Link::end() noexcept { ::shutdown(socket_.fd(), SHUT_WR); }

void Link::drain() noexcept {
  // More than sockets hold has not been sent by a peer that follows the rules.
  constexpr size_t kMost = 16 << 20;
  size_t total = 0, moved = 0;
  while (total < kMost && recv_into({}, in_size_, std::span(buffer_), moved) == Progress::done)
    total += moved;
}

}  // namespace cairn::dist

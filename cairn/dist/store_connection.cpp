// StoreConnection.
#include "cairn/dist/store_connection.h"

#include <array>

namespace cairn::dist {

bool StoreConnection::read() {
  std::array<std::byte, kRead> buffer;
  size_t moved = 0;
  const Transfer now = socket_.recv_some(buffer, moved);
  if (now == Transfer::again) return true;
  if (now != Transfer::done) return false;
  in_.append(reinterpret_cast<const char*>(buffer.data()), moved);
  return true;
}

std::optional<StoreConnection::Request> StoreConnection::next() {
  if (!wants_to_read()) return std::nullopt;
  const std::string_view rest = std::string_view(in_).substr(in_used_);
  StoreFrame frame;
  if (rest.size() >= StoreFrame::kHead) {
    frame = wire::frame_of(rest.data());
    if (frame.bytes > StoreFrame::kMaxBody)
      throw CommError(cat("store: request must have at most ", StoreFrame::kMaxBody, " bytes, got ",
                          frame.bytes));
  }
  if (rest.size() < StoreFrame::kHead + frame.bytes) {
    // What is done with goes before more comes; a large one gives its memory back.
    in_.erase(0, in_used_);
    in_used_ = 0;
    if (in_.empty() && in_.capacity() > 2 * kRead) std::string().swap(in_);
    return std::nullopt;
  }
  in_used_ += StoreFrame::kHead + frame.bytes;
  return Request{frame, std::string(rest.substr(StoreFrame::kHead, frame.bytes))};
}

void StoreConnection::reply(uint32_t id, StoreStatus status, std::string_view body,
                            StoreTable::Value value) {
  const size_t bytes = value ? value->size() : body.size();
  std::string text =
      wire::head_of({static_cast<uint32_t>(bytes), id, static_cast<uint32_t>(status)});
  if (!value) text += body;
  queue({std::move(text), nullptr, 0});
  if (value && bytes > 0) queue({{}, std::move(value), 0});
}

void StoreConnection::queue(Piece piece) {
  out_bytes_ += piece.bytes().size();
  out_.push_back(std::move(piece));
}

bool StoreConnection::flush() {
  while (!out_.empty()) {
    Piece& piece = out_.front();
    const auto rest = std::as_bytes(std::span(piece.bytes())).subspan(piece.sent);
    size_t moved = 0;
    const Transfer now = socket_.send_some(rest, moved);
    if (now == Transfer::again) return true;
    if (now != Transfer::done) return false;
    piece.sent += moved;
    out_bytes_ -= moved;
    if (moved == rest.size()) out_.pop_front();
  }
  return true;
}

}  // namespace cairn::dist

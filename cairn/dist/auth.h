// Auth: how the two ends of a connection prove to each other that they know the run's secret.
// Invariant: messages have fixed sizes, and nothing that the other end sent is used before its
// proof; a proof holds for these two random numbers, this run, this purpose and this end alone, so
// that neither a recording nor a reflection passes.
//
// It keeps strangers out. It does not encrypt, and does not guard against somebody who can change
// what travels between two proven ends.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "cairn/dist/socket.h"

namespace cairn::dist {

struct AuthOptions {
  std::string secret;
  // Another run, even with the same secret, is refused.
  std::string run_id;
  // What the connection is for: "store", "ring world 3". The same at both ends.
  std::string purpose;
};

// What each end says of itself (its rank, say); the proof covers it.
using Claim = std::array<uint32_t, 4>;

enum class Side : uint8_t { client, server };

// One end of the exchange, without the connection: hello (client), challenge (server), answer
// (client), verdict (server).
class Handshake {
 public:
  static constexpr size_t kLargest = 112;  // of its messages, in bytes

  Handshake(Side side, AuthOptions options, const Claim& claim);

  // What to send now; empty where nothing is. sent() once it is on its way.
  std::span<const std::byte> outgoing() const { return {out_.data(), out_size_}; }
  void sent() { out_size_ = 0; }
  // The size of the message to come; 0 once all have come.
  size_t expects() const;
  void received(std::span<const std::byte> message);

  // All is proven (and, once outgoing() is empty, told).
  bool done() const { return step_ == Step::done; }
  // Proven wrong: see refusal(). The server may still have a verdict to send.
  bool refused() const { return step_ == Step::refused; }
  // Why, as the end of a sentence: "secret must be the run's, got another".
  std::string_view refusal() const { return refusal_; }
  // What the other end says of itself; to be used once done().
  const Claim& peer() const { return peer_claim_; }

 private:
  using Nonce = std::array<std::byte, 32>;
  using Proof = std::array<std::byte, 32>;
  enum class Step : uint8_t { hello, challenge, answer, verdict, done, refused };
  enum class Verdict : uint8_t { accepted, secret, run, purpose, protocol };
  // What a proof covers; each also covers what stands before it, so that a refusal can tell what
  // differs.
  enum class Covers : uint8_t { secret, run, purpose };

  void put(std::span<const std::byte> bytes);
  void refuse(Verdict verdict);
  Proof proof(Side of, const Claim& claim, Covers covers) const;
  void take_hello(std::span<const std::byte> message);
  void take_challenge(std::span<const std::byte> message);
  void take_answer(std::span<const std::byte> message);
  void take_verdict(std::span<const std::byte> message);

  Side side_;
  Step step_;  // the message that comes next
  AuthOptions options_;
  Claim claim_, peer_claim_{};
  Nonce client_nonce_{}, server_nonce_{};
  std::array<std::byte, kLargest> out_{};
  size_t out_size_ = 0;
  std::string_view refusal_;
};

// The other end is not of this run; trying again will not help.
class RefusedError : public CommError {
 public:
  using CommError::CommError;
};

// The whole exchange over a new connection. Returns what the other end claims. RefusedError `what:
// secret must be the run's, got another` (or: run, purpose, protocol); CommError where the
// connection ends, or past the deadline.
Claim authenticate(Socket& socket, Side side, const AuthOptions& options, const Claim& claim,
                   const Deadline& deadline, std::string_view what);

}  // namespace cairn::dist

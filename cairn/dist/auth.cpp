// Handshake: four messages over HMAC-SHA256.
//
//   hello      client -> server   magic, the client's random number
//   challenge  server -> client   magic, the server's random number
//   answer     client -> server   claim, proofs of the secret, of the run, of the purpose
//   verdict    server -> client   verdict, claim, proof; zeros after a refusal
//
// The client proves first: who merely connects learns nothing that depends on the secret.
#include "cairn/dist/auth.h"

#include <sodium.h>

#include <algorithm>

namespace cairn::dist {
namespace {

constexpr size_t kMagicBytes = 8, kNonceBytes = 32, kProofBytes = 32;
constexpr size_t kClaimBytes = sizeof(Claim);
constexpr size_t kHelloBytes = kMagicBytes + kNonceBytes;
constexpr size_t kAnswerBytes = kClaimBytes + 3 * kProofBytes;
constexpr size_t kVerdictBytes = 8 + kClaimBytes + kProofBytes;
static_assert(kAnswerBytes == Handshake::kLargest && kProofBytes == crypto_auth_hmacsha256_BYTES);

// The last byte is the version of the exchange.
constexpr std::array<std::byte, kMagicBytes> kMagic = {
    std::byte{'c'}, std::byte{'a'}, std::byte{'i'}, std::byte{'r'},
    std::byte{'n'}, std::byte{0},   std::byte{0},   std::byte{1}};

const unsigned char* chars(std::span<const std::byte> bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

bool equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && sodium_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::array<std::byte, kClaimBytes> bytes_of(const Claim& claim) {
  std::array<std::byte, kClaimBytes> out;
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<std::byte>(claim[i / 4] >> (8 * (i % 4)));
  return out;
}

Claim claim_of(std::span<const std::byte> bytes) {
  Claim out{};
  for (size_t i = 0; i < kClaimBytes; ++i)
    out[i / 4] |= std::to_integer<uint32_t>(bytes[i]) << (8 * (i % 4));
  return out;
}

// HMAC-SHA256 of parts, each with its length before it, so that no two lists of parts are alike.
class Hmac {
 public:
  explicit Hmac(const std::string& key) {
    crypto_auth_hmacsha256_init(&state_, chars(std::as_bytes(std::span(key))), key.size());
  }
  void add(std::span<const std::byte> part) {
    unsigned char length[8];
    for (size_t i = 0; i < sizeof length; ++i)
      length[i] = static_cast<unsigned char>(uint64_t{part.size()} >> (8 * i));
    crypto_auth_hmacsha256_update(&state_, length, sizeof length);
    crypto_auth_hmacsha256_update(&state_, chars(part), part.size());
  }
  void add(std::string_view part) { add(std::as_bytes(std::span(part))); }
  std::array<std::byte, kProofBytes> finish() {
    std::array<std::byte, kProofBytes> out;
    crypto_auth_hmacsha256_final(&state_, reinterpret_cast<unsigned char*>(out.data()));
    return out;
  }

 private:
  crypto_auth_hmacsha256_state state_;
};

}  // namespace

Handshake::Handshake(Side side, AuthOptions options, const Claim& claim)
    : side_(side),
      step_(side == Side::server ? Step::hello : Step::challenge),
      options_(std::move(options)),
      claim_(claim) {
  check(sodium_init() >= 0, "auth: random numbers must be available, got none");
  Nonce& own = side == Side::server ? server_nonce_ : client_nonce_;
  randombytes_buf(own.data(), own.size());
  if (side == Side::client) {
    put(kMagic);
    put(client_nonce_);
  }
}

size_t Handshake::expects() const {
  switch (step_) {
    case Step::hello:
    case Step::challenge:
      return kHelloBytes;
    case Step::answer:
      return kAnswerBytes;
    case Step::verdict:
      return kVerdictBytes;
    default:
      return 0;
  }
}

void Handshake::received(std::span<const std::byte> message) {
  check(message.size() == expects() && !message.empty(), "auth: message must have ", expects(),
        " bytes, got ", message.size());
  out_size_ = 0;  // an answer to it means that the other end has what was said before
  switch (step_) {
    case Step::hello:
      return take_hello(message);
    case Step::challenge:
      return take_challenge(message);
    case Step::answer:
      return take_answer(message);
    default:
      return take_verdict(message);
  }
}

void Handshake::put(std::span<const std::byte> bytes) {
  std::copy(bytes.begin(), bytes.end(), out_.begin() + static_cast<ptrdiff_t>(out_size_));
  out_size_ += bytes.size();
}

Handshake::Proof Handshake::proof(Side of, const Claim& claim, Covers covers) const {
  Hmac hmac(options_.secret);
  hmac.add(of == Side::client ? "cairn client" : "cairn server");
  hmac.add(client_nonce_);
  hmac.add(server_nonce_);
  hmac.add(bytes_of(claim));
  if (covers >= Covers::run) hmac.add(options_.run_id);
  if (covers >= Covers::purpose) hmac.add(options_.purpose);
  return hmac.finish();
}

void Handshake::refuse(Verdict verdict) {
  step_ = Step::refused;
  switch (verdict) {
    case Verdict::secret:
      refusal_ = "secret must be the run's, got another";
      return;
    case Verdict::run:
      refusal_ = "run id must be the same on both sides, got another run's";
      return;
    case Verdict::purpose:
      refusal_ = "purpose must be the same on both sides, got another";
      return;
    default:
      refusal_ = "peer must speak this version of Cairn's protocol, got something else";
  }
}

void Handshake::take_hello(std::span<const std::byte> message) {
  if (!equal(message.first(kMagicBytes), kMagic)) return refuse(Verdict::protocol);
  std::copy_n(message.begin() + kMagicBytes, kNonceBytes, client_nonce_.begin());
  put(kMagic);
  put(server_nonce_);
  step_ = Step::answer;
}

void Handshake::take_challenge(std::span<const std::byte> message) {
  if (!equal(message.first(kMagicBytes), kMagic)) return refuse(Verdict::protocol);
  std::copy_n(message.begin() + kMagicBytes, kNonceBytes, server_nonce_.begin());
  put(bytes_of(claim_));
  for (const Covers covers : {Covers::secret, Covers::run, Covers::purpose})
    put(proof(Side::client, claim_, covers));
  step_ = Step::verdict;
}

void Handshake::take_answer(std::span<const std::byte> message) {
  const Claim claim = claim_of(message.first(kClaimBytes));
  const auto right = [&](Covers covers) {
    const size_t at = kClaimBytes + kProofBytes * static_cast<size_t>(covers);
    return equal(message.subspan(at, kProofBytes), proof(Side::client, claim, covers));
  };
  const Verdict verdict = !right(Covers::secret)    ? Verdict::secret
                          : !right(Covers::run)     ? Verdict::run
                          : !right(Covers::purpose) ? Verdict::purpose
                                                    : Verdict::accepted;
  const std::byte head[8] = {static_cast<std::byte>(verdict)};
  put(head);
  if (verdict == Verdict::accepted) {
    put(bytes_of(claim_));
    put(proof(Side::server, claim_, Covers::purpose));
    peer_claim_ = claim;
    step_ = Step::done;
  } else {
    put(std::array<std::byte, kClaimBytes + kProofBytes>{});
    refuse(verdict);
  }
}

void Handshake::take_verdict(std::span<const std::byte> message) {
  const auto verdict = std::to_integer<uint8_t>(message[0]);
  if (verdict != 0) return refuse(verdict < 4 ? Verdict{verdict} : Verdict::protocol);
  const Claim claim = claim_of(message.subspan(8, kClaimBytes));
  if (!equal(message.subspan(8 + kClaimBytes), proof(Side::server, claim, Covers::purpose)))
    return refuse(Verdict::secret);
  peer_claim_ = claim;
  step_ = Step::done;
}

Claim authenticate(Socket& socket, Side side, const AuthOptions& options, const Claim& claim,
                   const Deadline& deadline, std::string_view what) {
  Handshake handshake(side, options, claim);
  std::array<std::byte, Handshake::kLargest> buffer;
  while (true) {
    Transfer now = socket.send_all(handshake.outgoing(), deadline);
    handshake.sent();
    if (handshake.refused()) throw RefusedError(cat(what, ": ", handshake.refusal()));
    if (handshake.done() && now == Transfer::done) return handshake.peer();
    const auto message = std::span(buffer).first(handshake.expects());
    if (now == Transfer::done) now = socket.recv_all(message, deadline);
    if (now != Transfer::done)
      throw CommError(cat(what, ": peer must prove that it belongs to the run, got ",
                          now == Transfer::closed ? "the connection's end" : "nothing in time"));
    handshake.received(message);
  }
}

}  // namespace cairn::dist

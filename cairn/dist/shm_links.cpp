// ShmLinks: abstract unix sockets between rank 0 and the others; descriptors travel over them.
#include "cairn/dist/shm_links.h"

#include <fcntl.h>
#include <poll.h>
#include <sodium.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "cairn/dist/auth.h"
#include "cairn/dist/descriptors.h"

namespace cairn::dist {
namespace {

// How long one connection may take to prove itself before the next one is looked at.
constexpr Milliseconds kProof{5000};

sockaddr_un address_of(const std::string& name, socklen_t& size) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  check(name.size() + 1 < sizeof address.sun_path, "shm: name must be shorter, got ", name.size(),
        " bytes");
  // The zero byte in front says that it is no file.
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

Socket new_socket() {
  Socket socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) throw CommError(cat("shm: a descriptor must be free, got: ", std::strerror(errno)));
  return socket;
}

bool of_this_user(const Socket& socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(socket.fd(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
         peer.uid == ::geteuid();
}

// A descriptor of this process that tells its end; where the kernel has none, of the pipe again.
Socket own_process(const Socket& pipe) {
  Socket process(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  if (!process) process = Socket(::fcntl(pipe.fd(), F_DUPFD_CLOEXEC, 0));
  if (!process) throw CommError(cat("shm: a descriptor must be free, got: ", std::strerror(errno)));
  return process;
}

}  // namespace

std::string new_local_name() {
  unsigned char bytes[16];
  ::randombytes_buf(bytes, sizeof bytes);
  std::string name = "cairn-";
  for (unsigned char byte : bytes) {
    name += "0123456789abcdef"[byte >> 4];
    name += "0123456789abcdef"[byte & 15];
  }
  return name;
}

Socket listen_locally(const std::string& name) {
  Socket listener = new_socket();
  socklen_t size = 0;
  const sockaddr_un address = address_of(name, size);
  if (::bind(listener.fd(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      ::listen(listener.fd(), SOMAXCONN) != 0)
    throw CommError(cat("shm: a local socket must listen, got: ", std::strerror(errno)));
  return listener;
}

Socket connect_locally(const std::string& name) {
  Socket socket = new_socket();
  socklen_t size = 0;
  const sockaddr_un address = address_of(name, size);
  int result = 0;
  do {
    result = ::connect(socket.fd(), reinterpret_cast<const sockaddr*>(&address), size);
  } while (result != 0 && errno == EINTR);
  if (result != 0 || !of_this_user(socket)) return {};
  return socket;
}

ShmLinks::ShmLinks(const GroupOptions& options, const Deadline& deadline)
    : rank_(options.rank),
      size_(options.size),
      what_(cat("shm group '", options.name, "'")),
      options_(options),
      connections_(static_cast<size_t>(options.size)),
      lives_(static_cast<size_t>(options.size)) {
  if (size_ == 1) return;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
    throw CommError(cat(what_, ": descriptors must be free, got: ", std::strerror(errno)));
  Life& own = lives_[static_cast<size_t>(rank_)];
  own.pipe = Socket(ends[0]);
  own_life_ = Socket(ends[1]);
  own.process = own_process(own.pipe);
  rank_ == 0 ? lead(deadline) : follow(deadline);
  own = {};
}

std::string ShmLinks::missing() const {
  std::string out;
  for (int r = 1; r < size_; ++r)
    if (!connections_[static_cast<size_t>(r)])
      out += cat(out.empty() ? "" : ", ", options_.name_of(r));
  return out;
}

void ShmLinks::lead(const Deadline& deadline) {
  const std::string key = cat(options_.name, "/shm/leader"), name = new_local_name();
  const Socket listener = listen_locally(name);
  options_.store->set(key, name);
  while (!missing().empty()) {
    if (listener.wait_readable(deadline) != Transfer::done)
      throw CommError(cat(what_, ": ", size_, " ranks must join within ", options_.timeout.count(),
                          " ms, missing [", missing(), "]"));
    Socket connection = accept_from(listener);
    if (connection && of_this_user(connection)) admit(std::move(connection), deadline);
  }
  options_.store->delete_key(key);
  for (int to = 1; to < size_; ++to) {
    for (const Life& life : lives_) {
      const int descriptors[] = {life.pipe.fd(), life.process.fd()};
      hand_over(to, 0, descriptors, deadline);
    }
  }
}

// To one of the others.
void ShmLinks::hand_over(int to, int64_t number, std::span<const int> descriptors,
                         const Deadline& deadline) {
  const Transfer transfer =
      send_descriptors(connections_[static_cast<size_t>(to)], number, descriptors, deadline, what_);
  if (transfer != Transfer::done)
    throw CommError(cat(what_, ": ", called(to), " must take descriptors of shared memory, got ",
                        transfer == Transfer::closed ? "its end" : "no answer in time"));
}

// A stranger is let go without a word; the ranks that are missing in the end are told.
void ShmLinks::admit(Socket connection, const Deadline& deadline) {
  const Deadline soon = deadline.or_in(kProof);
  DescriptorMessage lives;
  Claim claim{};
  try {
    claim = authenticate(connection, Side::server, {options_.secret, {}, what_},
                         {0, static_cast<uint32_t>(size_)}, soon, what_);
  } catch (const CommError&) {
    return;
  }
  if (recv_descriptors(connection, 2, soon, what_, lives) != Transfer::done) return;
  if (claim[1] != static_cast<uint32_t>(size_) || claim[0] == 0 || claim[0] >= claim[1])
    throw CommError(cat(what_, ": rank and size must be below ", size_, " and ", size_, ", got ",
                        claim[0], " and ", claim[1], " from a process"));
  if (connections_[claim[0]])
    throw CommError(
        cat(what_, ": ranks must differ, got ", called(static_cast<int>(claim[0])), " twice"));
  lives_[claim[0]] = {std::move(lives.descriptors[0]), std::move(lives.descriptors[1])};
  connections_[claim[0]] = std::move(connection);
}

void ShmLinks::follow(const Deadline& deadline) {
  const std::string name =
      options_.store->get(cat(options_.name, "/shm/leader"), deadline.remaining());
  Socket connection = connect_locally(name);
  if (!connection)
    throw CommError(
        cat(what_, ": ", called(0), " must be on this host and of this user, got no answer"));
  const Claim claim =
      authenticate(connection, Side::client, {options_.secret, {}, what_},
                   {static_cast<uint32_t>(rank_), static_cast<uint32_t>(size_)}, deadline, what_);
  if (claim[1] != static_cast<uint32_t>(size_))
    throw CommError(cat(what_, ": size must be the same on all ranks, got ", size_, " here and ",
                        claim[1], " on ", called(0)));
  const Life& own = lives_[static_cast<size_t>(rank_)];
  const int descriptors[] = {own.pipe.fd(), own.process.fd()};
  bool well = send_descriptors(connection, 0, descriptors, deadline, what_) == Transfer::done;
  for (int r = 0; well && r < size_; ++r) {
    DescriptorMessage life;
    const Transfer transfer = recv_descriptors(connection, 2, deadline, what_, life);
    if (transfer == Transfer::timed_out)
      throw CommError(cat(what_, ": all ranks must join within ", options_.timeout.count(),
                          " ms, got ", called(0), " still waiting for others"));
    well = transfer == Transfer::done;
    if (r != rank_)
      lives_[static_cast<size_t>(r)] = {std::move(life.descriptors[0]),
                                        std::move(life.descriptors[1])};
  }
  if (!well)
    throw CommError(cat(what_, ": ", called(0), " must make the group, got its end instead"));
  connections_[0] = std::move(connection);
}

SharedMemory ShmLinks::share(int64_t bytes, const Deadline& deadline) {
  const std::unique_lock lock(sharing_, deadline.at());
  if (!lock)
    throw CommError(cat(what_,
                        ": memory must be shared by one thread at a time, got another that "
                        "was not done in time"));
  if (rank_ == 0) {
    SharedMemory memory(bytes);
    const int descriptor = memory.descriptor();
    for (int to = 1; to < size_; ++to) hand_over(to, bytes, std::span(&descriptor, 1), deadline);
    memory.close_descriptor();
    return memory;
  }
  DescriptorMessage message;
  const Transfer transfer = recv_descriptors(connections_[0], 1, deadline, what_, message);
  if (transfer != Transfer::done)
    throw CommError(cat(what_, ": ", called(0), " must share ", bytes, " bytes, got ",
                        transfer == Transfer::closed ? "its end" : "nothing in time"));
  if (message.number != bytes)
    throw CommError(cat(what_, ": shared memory must be equal on all ranks, got ", message.number,
                        " bytes on ", called(0), " and ", bytes, " on ", called(rank_)));
  SharedMemory memory(std::move(message.descriptors[0]), bytes);
  memory.close_descriptor();
  return memory;
}

bool ShmLinks::ended(int rank) const {
  const Life& life = lives_[static_cast<size_t>(rank)];
  if (!life.pipe) return false;
  pollfd entries[] = {{life.pipe.fd(), POLLIN, 0}, {life.process.fd(), POLLIN, 0}};
  return ::poll(entries, 2, 0) > 0;
}

}  // namespace cairn::dist

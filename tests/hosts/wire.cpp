// A bad wire between two network namespaces, since few kernels have netem: wire NAMESPACE NAMESPACE
// DELAY_MS LOST_OF_1000 KBIT_PER_S (0: as fast as it can). Both get a device wire0; what goes into
// one comes out of the other later, or not at all.
// Invariant: what is lost depends on the order of the packets alone; it ends with its input.
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
// What waits in one direction at most, as netem has it.
constexpr size_t kMostPackets = 1000;
constexpr size_t kPacket = 65536;

[[noreturn]] void die(const std::string& what) {
  std::perror(("wire: " + what).c_str());
  std::exit(1);
}

// The device's descriptor works from every namespace.
int device_in(const std::string& name) {
  const int space = open(("/var/run/netns/" + name).c_str(), O_RDONLY | O_CLOEXEC);
  if (space < 0 || setns(space, CLONE_NEWNET) != 0) die("namespace " + name);
  close(space);
  const int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  ifreq request{};
  std::strcpy(request.ifr_name, "wire0");
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  if (fd < 0 || ioctl(fd, TUNSETIFF, &request) != 0) die("/dev/net/tun");
  return fd;
}

class Direction {
 public:
  Direction(int from, int to, std::chrono::milliseconds delay, unsigned lost, double kbit)
      : from_(from), to_(to), delay_(delay), lost_(lost), kbit_(kbit), random_(lost + 1) {}

  void take() {
    std::vector<char> packet(kPacket);
    for (;;) {
      const ssize_t size = read(from_, packet.data(), packet.size());
      if (size <= 0) return;
      if (random_() % 1000 < lost_ || waiting_.size() == kMostPackets) continue;
      // It is on the wire as soon as those before it are, for as long as its bits take.
      free_ = std::max(free_, Clock::now());
      if (kbit_ > 0)
        free_ += std::chrono::microseconds(std::lround(static_cast<double>(size) * 8000 / kbit_));
      waiting_.push_back({free_ + delay_, {packet.begin(), packet.begin() + size}});
    }
  }

  // Milliseconds until the next packet is due, rounded up; -1: none.
  int hand_on() {
    while (!waiting_.empty()) {
      const auto left =
          std::chrono::ceil<std::chrono::milliseconds>(waiting_.front().due - Clock::now());
      if (left.count() > 0) return static_cast<int>(left.count());
      // A device that is down takes nothing, as a wire without a host at its end.
      const auto& bytes = waiting_.front().bytes;
      [[maybe_unused]] const ssize_t taken = write(to_, bytes.data(), bytes.size());
      waiting_.pop_front();
    }
    return -1;
  }

 private:
  struct Packet {
    Clock::time_point due;
    std::vector<char> bytes;
  };

  const int from_, to_;
  const std::chrono::milliseconds delay_;
  const unsigned lost_;
  const double kbit_;
  std::mt19937 random_;
  Clock::time_point free_{};
  std::deque<Packet> waiting_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const int a = device_in(argv[1]), b = device_in(argv[2]);
  const std::chrono::milliseconds delay(std::atoi(argv[3]));
  const auto lost = static_cast<unsigned>(std::atoi(argv[4]));
  const double kbit = std::atof(argv[5]);
  Direction there(a, b, delay, lost, kbit), back(b, a, delay, lost, kbit);
  std::puts("ready");
  std::fflush(stdout);
  pollfd polled[3] = {{a, POLLIN, 0}, {b, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
  while ((polled[2].revents & (POLLIN | POLLHUP)) == 0) {
    const int first = there.hand_on(), second = back.hand_on();
    const int next = first < 0 ? second : second < 0 ? first : std::min(first, second);
    poll(polled, 3, next);
    there.take();
    back.take();
  }
  return 0;
}

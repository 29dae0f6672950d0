// See launcher_process.h.
#include "tests/dist/launcher_process.h"

#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "cairn/dist/deadline.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"

namespace cairn::test {

using namespace dist;
using Clock = std::chrono::steady_clock;

namespace {

const std::string kCairn = std::string(CAIRN_BIN_DIR) + "/cairn";

std::vector<std::string> environment_of_test() {
  std::vector<std::string> out;
  for (char** variable = environ; *variable != nullptr; ++variable) out.emplace_back(*variable);
  return out;
}

std::vector<std::string> command(const std::vector<std::string>& arguments) {
  std::vector<std::string> all = {kCairn, "launch"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return all;
}

// Tests that a script runs in the background ignore Ctrl-C, and so would what they start.
void hear_interrupts() { ::signal(SIGINT, SIG_DFL); }

WorkerOutput::Take lines_to(std::string& text) {
  return [&text](std::string_view line) { text += cat(line, "\n"); };
}

}  // namespace

bool exists(pid_t pid) { return kill(pid, 0) == 0; }

bool gone(pid_t pid, double seconds) {
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    const std::string state = read_bytes(cat("/proc/", pid, "/stat"));
    if (!exists(pid) || state.find(") Z ") != std::string::npos) return true;
    std::this_thread::sleep_for(Milliseconds(5));
  } while (Clock::now() < end);
  return false;
}

std::vector<pid_t> pids_in(const std::string& text) {
  std::vector<pid_t> out;
  for (size_t at = text.find("pid "); at != std::string::npos; at = text.find("pid ", at + 1))
    out.push_back(static_cast<pid_t>(std::stol(text.substr(at + 4))));
  return out;
}

bool port_is_free(int port) {
  const Socket socket(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return bind(socket.fd(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
}

Launcher::Launcher(const std::vector<std::string>& arguments)
    : child_((hear_interrupts(), kCairn), command(arguments), environment_of_test()),
      out_(std::move(child_.out), lines_to(out)),
      err_(std::move(child_.err), lines_to(err)) {}

bool Launcher::wait_for(const std::function<bool()>& there, double seconds) {
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (!there() && Clock::now() < end) {
    if (reads_out) out_.read_some(1 << 20);
    err_.read_some(1 << 20);
    std::this_thread::sleep_for(Milliseconds(2));
  }
  return there();
}

ExitStatus Launcher::wait_for_end(double seconds) {
  std::optional<ExitStatus> status;
  wait_for([&] { return (status = child_.poll()).has_value(); }, seconds);
  out_.finish();
  err_.finish();
  REQUIRE(status.has_value());
  return *status;
}

void interrupt(const Launcher& launcher) { kill(launcher.pid(), SIGINT); }

}  // namespace cairn::test

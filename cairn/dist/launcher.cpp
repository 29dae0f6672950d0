// launch(): checks the options and makes what the workers are told; the Supervisor does the rest.
#include "cairn/dist/launcher.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "cairn/dist/environment.h"
#include "cairn/dist/report_folder.h"
#include "cairn/dist/supervisor.h"

namespace cairn::dist {
namespace {

constexpr int kMostWorkers = Guard::kMostGroups;

std::string random_hex(size_t bytes) {
  std::vector<unsigned char> random(bytes);
  if (getrandom(random.data(), bytes, 0) != static_cast<ssize_t>(bytes))
    fail("launch: random bytes must be there, got: ", std::strerror(errno));
  std::string out;
  for (const unsigned char byte : random) {
    out += "0123456789abcdef"[byte / 16];
    out += "0123456789abcdef"[byte % 16];
  }
  return out;
}

// A port of loopback that is this run's while the socket lives: it is bound, so that nobody else
// is given it, but does not listen, so that rank 0 (which reuses addresses, as every server does)
// may listen there.
Socket reserve_port(int& port) {
  Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (bind(socket.fd(), generic, size) != 0)
    fail("launch: master port ", port, " must be free on 127.0.0.1, got: ", std::strerror(errno),
         "; leave it out to get a free one");
  getsockname(socket.fd(), generic, &size);
  port = ntohs(address.sin_port);
  return socket;
}

int processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void check_options(const LaunchOptions& o) {
  check(!o.program.empty(), "launch: program must be given, got nothing");
  check(o.workers >= 1 && o.workers <= kMostWorkers, "launch: workers must be 1 to ", kMostWorkers,
        ", got ", o.workers);
  const int hosts = std::max(1, static_cast<int>(o.hosts.size()));
  check(o.node_rank || hosts == 1, "launch: rank of this host must be given where there are ",
        hosts, " hosts, got nothing; give each its place in the list, from 0, with --rank");
  const int rank = o.node_rank.value_or(0);
  check(rank >= 0 && rank < hosts, "launch: rank of this host must be below the number of hosts, ",
        hosts, ", got ", rank);
  check(o.master_port >= 0 && o.master_port <= 65535,
        "launch: master port must be 1 to 65535, or 0 for a free one, got ", o.master_port);
  for (const std::string& variable : o.environment)
    check(variable.find('=') != std::string::npos && variable[0] != '=',
          "launch: environment must be NAME=value, got '", variable, "'");
}

// The variables that all workers share.
class Environment {
 public:
  Environment() {
    for (char** variable = environ; *variable != nullptr; ++variable) all_.emplace_back(*variable);
    // It would tell the workers that somebody else started them.
    unset("CAIRN_ENVIRONMENT");
  }
  std::string get(const std::string& name) const {
    for (const std::string& variable : all_)
      if (variable.rfind(name + "=", 0) == 0) return variable.substr(name.size() + 1);
    return "";
  }
  void unset(const std::string& name) {
    std::erase_if(all_, [&](const std::string& v) { return v.rfind(name + "=", 0) == 0; });
  }
  void set(const std::string& variable) {
    unset(variable.substr(0, variable.find('=')));
    all_.push_back(variable);
  }
  template <class Value>
  void set(const std::string& name, const Value& value) {
    set(cat(name, "=", value));
  }
  const std::vector<std::string>& all() const { return all_; }

 private:
  std::vector<std::string> all_;
};

void set_run(Environment& environment, const LaunchOptions& o, const std::string& address,
             int port) {
  const int hosts = std::max(1, static_cast<int>(o.hosts.size()));
  environment.set(kLaunchVariable, 1);
  environment.set("WORLD_SIZE", hosts * o.workers);
  environment.set("LOCAL_WORLD_SIZE", o.workers);
  environment.set("GROUP_RANK", o.node_rank.value_or(0));
  environment.set("NODE_RANK", o.node_rank.value_or(0));
  environment.set("GROUP_WORLD_SIZE", hosts);
  environment.set("MASTER_ADDR", address);
  environment.set("MASTER_PORT", port);
  if (environment.get("CAIRN_NUM_THREADS").empty())
    environment.set("CAIRN_NUM_THREADS", std::max(1, processors() / o.workers));
  if (hosts == 1) {
    environment.set(kRunIdVariable, random_hex(8));
    if (environment.get(kSecretVariable).empty()) environment.set(kSecretVariable, random_hex(32));
    return;
  }
  check(!environment.get(kSecretVariable).empty(), "launch: ", kSecretVariable,
        " must be set for several hosts, got nothing; give all hosts the same value, for example "
        "from `openssl rand -hex 32`");
  if (environment.get(kRunIdVariable).empty())
    environment.set(kRunIdVariable, cat(address, ":", port));
}

}  // namespace

LaunchResult launch(const LaunchOptions& o) {
  check_options(o);
  Environment environment;
  const bool alone = o.hosts.size() <= 1;
  std::string address = o.master_address;
  if (address.empty()) address = alone ? "127.0.0.1" : o.hosts.front();
  int port = o.master_port;
  if (port == 0 && !alone) port = LaunchOptions::kHostsPort;
  const Socket reserved = alone ? reserve_port(port) : Socket();
  set_run(environment, o, address, port);
  for (const std::string& variable : o.environment) environment.set(variable);

  const std::string file = find_program(o.program.front(), environment.get("PATH"));
  const ReportFolder reports;
  Supervisor supervisor(o);
  for (int local = 0; local < o.workers; ++local) {
    const int rank = o.node_rank.value_or(0) * o.workers + local;
    Environment own = environment;
    own.set("RANK", rank);
    own.set("LOCAL_RANK", local);
    own.set(kErrorFileVariable, reports.file(rank));
    supervisor.start(rank, file, own.all(), reports.file(rank));
  }
  return supervisor.run();
}

}  // namespace cairn::dist

// The Cairn side of `./run bench`: one JSON object per line on stdin, one on stdout.
// Invariant: every request gets one answer, {"error": …} where it failed; bench/sides.py documents
// the requests.
#include <cairn/cairn.h>

#include <fstream>
#include <iostream>
#include <map>

#include "bench/jobs.h"

namespace {

using namespace cairn;
using bench::json;

int64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    int64_t kib = 0;
    if (word == "VmHWM:" && status >> kib) return kib * 1024;
  }
  throw Error("rss: /proc/self/status must have a VmHWM line, got none");
}

#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__)
constexpr const char* kBuild = "optimized";
#else
constexpr const char* kBuild = "not optimized";
#endif

json info(const json& request) {
  set_num_threads(request.value("threads", 2));
  return {{"name", "Cairn " + std::string(version())},
          {"compiler", CAIRN_BENCH_COMPILER},
          {"build", kBuild},
          {"threads", num_threads()},
          {"data", bench::find_fashion_mnist(request.value("data", ""))}};
}

std::unique_ptr<bench::Job> make_job(const json& request) {
  const std::string kind = request.at("job");
  if (kind == "model") return bench::model_job(request);
  if (kind == "op") return bench::op_job(request);
  if (kind == "data") return bench::data_job(request);
  throw Error("setup: job must be one of model, op, data, got " + kind);
}

json answer(std::unique_ptr<bench::Job>& job, const json& request) {
  const std::string command = request.value("cmd", "");
  if (command == "info") return info(request);
  if (command == "setup") {
    set_num_threads(request.value("threads", 2));
    job = make_job(request);
    return json::object();
  }
  if (command == "check" || command == "run") {
    check(job != nullptr, command, ": setup must come first");
    if (command == "check") return {{"outputs", job->outputs()}};
    return {{"values", job->run(request.at("n"))}};
  }
  if (command == "peak") {
    set_num_threads(request.value("threads", 2));
    return request.at("what") == "fma" ? bench::fma_peak() : bench::bandwidth();
  }
  if (command == "layers") {
    set_num_threads(request.value("threads", 2));
    return bench::kernels_on_layers(request);
  }
  if (command == "rss") return {{"bytes", peak_resident_bytes()}};
  throw Error("cmd must be one of info, setup, check, run, peak, layers, rss, quit, got " +
              command);
}

}  // namespace

int main() {
  std::unique_ptr<bench::Job> job;
  std::string line;
  while (std::getline(std::cin, line)) {
    json reply;
    try {
      const json request = json::parse(line);
      if (request.value("cmd", "") == "quit") break;
      reply = answer(job, request);
    } catch (const std::exception& error) {
      reply = {{"error", error.what()}};
    }
    std::cout << reply.dump() << std::endl;
  }
}

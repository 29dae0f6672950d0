// The Cairn side of `./run bench`. bench/sides.py documents the requests.
#include <cairn/cairn.h>

#include <fstream>
#include <map>

#include "bench/jobs.h"
#include "bench/serve.h"
#include "cairn/tensor/allocator.h"
#include "cairn/tensor/cuda.h"

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

// Bytes that the allocator holds of the device, and the most that tensors have used of them. Cached
// blocks go back only where memory runs out or `reset` asks for it, so what is held now is the most
// that was held since then.
json device_memory(const json& request) {
  const Device device(request.at("device").get<std::string>());
  Allocator& allocator = *backend_of(device.type, "memory").allocator(device);
  if (request.value("reset", false)) {
    cuda::synchronize(device);
    allocator.release_cached();
    allocator.reset_peak();
  }
  const MemoryStats stats = allocator.stats();
  return {{"reserved", stats.allocated + stats.cached}, {"allocated", stats.peak}};
}

#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__)
constexpr const char* kBuild = "optimized";
#else
constexpr const char* kBuild = "not optimized";
#endif

// The first card's name, or why there is none.
std::string cuda_text() {
  if (cuda::device_count() == 0) return "none (" + cuda::unavailable() + ")";
  return cuda::properties(Device("cuda:0")).name;
}

json info(const json& request) {
  set_num_threads(request.value("threads", 2));
  return {{"name", "Cairn " + std::string(version())},
          {"compiler", CAIRN_BENCH_COMPILER},
          {"build", kBuild},
          {"threads", num_threads()},
          {"cuda", cuda_text()},
          {"data", bench::find_fashion_mnist(request.value("data", ""))}};
}

std::unique_ptr<bench::Job> make_job(const json& request) {
  const std::string kind = request.at("job");
  if (kind == "model") return bench::model_job(request);
  if (kind == "device") return bench::device_job(request);
  if (kind == "op") return bench::op_job(request);
  if (kind == "data") return bench::data_job(request);
  if (kind == "all_reduce") return bench::all_reduce_job(request);
  if (kind == "ddp") return bench::ddp_job(request);
  throw Error("setup: job must be one of model, device, op, data, all_reduce, ddp, got " + kind);
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
  if (command == "memory") return device_memory(request);
  throw Error("cmd must be one of info, setup, check, run, peak, layers, rss, memory, quit, got " +
              command);
}

}  // namespace

int main() {
  std::unique_ptr<bench::Job> job;
  cairn::bench::serve([&](const json& request) { return answer(job, request); });
}

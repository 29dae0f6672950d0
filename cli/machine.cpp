// `cairn info` and `cairn doctor`: what was built, and what the machine offers.
#include <sys/sysinfo.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iostream>
#include <sstream>

#include "cairn/data/mnist.h"
#include "cairn/kernels/target.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/device.h"
#include "cairn/tensor/error.h"
#include "cairn/tensor/parallel.h"
#include "cli/verbs.h"

namespace cairn::cli {
namespace {

// The flags of /proc/cpuinfo that decide how fast training is.
constexpr std::array kFlags = {"sse4_2",      "avx",      "avx2",     "fma",         "f16c",
                               "avx512f",     "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
                               "avx512_fp16", "amx_bf16", "asimd",    "sve"};

// The first value of a "name : value" line; "" where there is none.
std::string cpuinfo(const std::string& name) {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(name, 0) != 0) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t start = line.find_first_not_of(" \t", colon + 1);
    return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

std::string cpu_flags() {
  const std::string x86 = cpuinfo("flags");
  std::istringstream words(x86.empty() ? cpuinfo("Features") : x86);
  std::vector<std::string> has;
  for (std::string word; words >> word;) has.push_back(word);
  std::string out;
  for (const char* flag : kFlags)
    if (std::find(has.begin(), has.end(), flag) != has.end())
      out += (out.empty() ? "" : " ") + std::string(flag);
  return out.empty() ? "unknown" : out;
}

// kB of a line of /proc/meminfo, or -1.
int64_t meminfo(const std::string& name) {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);)
    if (line.rfind(name + ":", 0) == 0) return std::stoll(line.substr(name.size() + 1));
  return -1;
}

std::string gib(int64_t kilobytes) {
  if (kilobytes < 0) return "unknown";
  const int64_t tenths = kilobytes * 10 / (1024 * 1024);
  return cat(tenths / 10, ".", tenths % 10, " GiB");
}

std::string join(const std::vector<std::string>& words) {
  std::string out;
  for (const auto& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

// Reads the set as training would, so that a damaged file shows here.
std::string data_state() {
  try {
    const data::FashionMNIST train({.train = true});
    const data::FashionMNIST test({.train = false});
    return cat("Fashion-MNIST found: ", train.size(), " + ", test.size(), " images");
  } catch (const Error& error) {
    return error.what();
  }
}

// 13000 as CUDA writes it: "13.0".
std::string cuda_version(int version) { return cat(version / 1000, ".", version % 1000 / 10); }

// "built for 13.0, the driver serves 13.1", or why not.
std::string cuda_state() {
  if (!cuda::built()) {
    const bool driver = std::ifstream("/proc/driver/nvidia/version").good();
    return cat("none in this build", driver ? "; the machine has an NVIDIA driver" : "");
  }
  const int driver = cuda::driver_version();
  return cat("built for ", cuda_version(cuda::runtime_version()), ", ",
             driver > 0 ? cat("the driver serves ", cuda_version(driver)) : "no driver");
}

// One line a device.
void print_devices() {
  const int count = cuda::device_count();
  if (count == 0) print_line("GPU", cat("none: ", cuda::unavailable()));
  for (int i = 0; i < count; ++i) {
    const Device device(DeviceType::cuda, i);
    const cuda::DeviceProperties p = cuda::properties(device);
    print_line("GPU", cat(device, ": ", p.name, ", ", gib(p.memory / 1024), ", ", p.multiprocessors,
                          " multiprocessors of compute capability ", p.major, ".", p.minor));
  }
}

std::string device_names() {
  std::string out = "cpu";
  for (int i = 0; i < cuda::device_count(); ++i) out += cat(" ", Device(DeviceType::cuda, i));
  return out;
}

// False, and the error, where CAIRN_NUM_THREADS is no number of threads.
bool thread_state(std::string& text) {
  try {
    text = cat(num_threads(), " of ", get_nprocs(), " processors");
    return true;
  } catch (const Error& error) {
    text = error.what();
    return false;
  }
}

}  // namespace

void print_line(const std::string& word, const std::string& text) {
  std::cout << word << std::string(word.size() < 12 ? 12 - word.size() : 1, ' ') << text << "\n";
}

std::string compiler_and_build() {
#if defined(__clang__)
  const std::string compiler =
      cat("Clang ", __clang_major__, ".", __clang_minor__, ".", __clang_patchlevel__);
#else
  const std::string compiler = cat("GCC ", __GNUC__, ".", __GNUC_MINOR__, ".", __GNUC_PATCHLEVEL__);
#endif
  return compiler + ", " + CAIRN_BUILD_TYPE;
}

int info() {
  print_line("version", CAIRN_VERSION);
  print_line("compiler", compiler_and_build());
  print_line("targets", join(kernels::compiled_targets()));
  print_line("CUDA", cuda_state());
  print_line("devices", device_names());
  return 0;
}

int doctor() {
  print_line("cairn", cat(CAIRN_VERSION, ", ", compiler_and_build()));
  const std::string name = cpuinfo("model name");
  print_line("processor", name.empty() ? "unknown" : name);
  print_line("features", cpu_flags());
  const auto targets = kernels::usable_targets();
  print_line("kernels", cat(targets.empty() ? "none fits" : targets.front(), ", chosen from ",
                            join(kernels::compiled_targets())));
  print_line("BLAS", "none: matrix products and convolutions are Cairn's own");
  print_openblas(cpu_flags());
  std::string threads;
  const bool threads_fit = thread_state(threads);
  print_line("threads", threads);
  print_line("memory",
             cat(gib(meminfo("MemTotal")), ", ", gib(meminfo("MemAvailable")), " available"));
  print_line("data", data_state());
  print_line("CUDA", cuda_state());
  print_devices();
  return targets.empty() || !threads_fit ? 1 : 0;
}

}  // namespace cairn::cli

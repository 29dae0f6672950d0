// launch_ranks().
#include "cairn/trainer/launch_ranks.h"

#include <filesystem>
#include <utility>

#include "cairn/dist/environment.h"
#include "cairn/tensor/error.h"

namespace cairn::trainer {

std::optional<dist::LaunchResult> launch_ranks(
    int workers, int argc, const char* const* argv,
    std::function<std::string(const dist::OutputLine&)> show) {
  check(workers >= 1, "launch_ranks: workers must be at least 1, got ", workers);
  const dist::ClusterEnvironment environment = dist::detect_environment();
  if (environment.name != "single") {
    check(workers == 1 || workers == environment.local_world_size, "launch_ranks: workers must be ",
          environment.local_world_size, ", as many as ", environment.name,
          " started on this host, got ", workers);
    return {};
  }
  if (workers == 1) return {};
  dist::LaunchOptions options;
  options.workers = workers;
  options.program.push_back(std::filesystem::read_symlink("/proc/self/exe").string());
  for (int i = 1; i < argc; ++i) options.program.emplace_back(argv[i]);
  options.show = std::move(show);
  return dist::launch(options);
}

}  // namespace cairn::trainer

// Convolution plans on disk, so that the next process need not search for them.
// Invariant: a file is either what save() wrote for this very key or is ignored; nothing here
// throws, as a cache may be read-only, full, damaged or written by another version.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cairn::kernels::cuda {

// Which of the library's engines, and how it is set.
struct PlanChoice {
  int64_t engine = 0;
  std::vector<std::pair<int64_t, int64_t>> knobs;  // type, value
  bool operator==(const PlanChoice&) const = default;
};

class PlanStore {
 public:
  // Empty: keeps nothing.
  explicit PlanStore(std::filesystem::path folder) : folder_(std::move(folder)) {}
  // $XDG_CACHE_HOME/cairn/plans, else ~/.cache/cairn/plans, else one that keeps nothing.
  static PlanStore of_user();

  // `key` is one line of text that names all that the choice depends on.
  std::optional<PlanChoice> load(std::string_view key) const;
  // Atomically: a reader sees the whole file or none.
  void save(std::string_view key, const PlanChoice& choice) const;
  std::filesystem::path file_of(std::string_view key) const;

 private:
  std::filesystem::path folder_;
};

}  // namespace cairn::kernels::cuda

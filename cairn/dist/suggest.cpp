// Words for errors about names.
#include "cairn/dist/suggest.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "cairn/tensor/error.h"

namespace cairn::dist {
namespace {

// Letters to change, add or remove.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t change = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({change, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string one_of(std::span<const char* const> names) {
  std::string out;
  for (size_t i = 0; i < names.size(); ++i)
    out += cat(i == 0 ? "" : i + 1 == names.size() ? " or " : ", ", names[i]);
  return out;
}

std::string did_you_mean(std::string_view name, std::span<const char* const> names) {
  const auto nearest = std::min_element(
      names.begin(), names.end(),
      [&](const char* a, const char* b) { return distance(name, a) < distance(name, b); });
  if (nearest == names.end() || distance(name, *nearest) * 2 > name.size() + 1) return "";
  return cat("; did you mean '", *nearest, "'?");
}

}  // namespace cairn::dist

// One exchange: each process's value, and a hash of what it is.
#include "cairn/trainer/joined_value.h"

#include <xxhash.h>

#include <cstring>

#include "cairn/dist/process_group.h"

namespace cairn::trainer {
namespace {

struct Row {
  double value = 0;
  uint64_t label = 0;
};

std::vector<Row> exchange(Strategy& strategy, const Row& mine) {
  std::string bytes(sizeof(Row), '\0');
  std::memcpy(bytes.data(), &mine, sizeof(Row));
  std::vector<Row> rows;
  for (const std::string& other : strategy.all_gather_equal(std::move(bytes)))
    std::memcpy(&rows.emplace_back(), other.data(), sizeof(Row));
  return rows;
}

double reduced(const std::vector<Row>& rows, Reduce how) {
  double out = rows[0].value;
  const bool adds = how == Reduce::mean || how == Reduce::sum;
  for (size_t r = 1; r < rows.size(); ++r)
    out = adds ? out + rows[r].value : extreme(how, out, rows[r].value);
  return how == Reduce::mean ? out / static_cast<double>(rows.size()) : out;
}

}  // namespace

double joined_value(Strategy& strategy, std::string_view name, Reduce how, double value) {
  const auto in_front = [&](const std::exception& error) {
    return cat("log('", name, "') with sync_dist: ", error.what());
  };
  try {
    const std::string label = cat("'", name, "' (", name_of(how), ")");
    const std::vector<Row> rows =
        exchange(strategy, {value, XXH3_64bits(label.data(), label.size())});
    bool equal = true;
    for (const Row& row : rows) equal &= row.label == rows[0].label;
    if (!equal) {  // only then the names travel
      const std::vector<std::string> labels = strategy.all_gather(label);
      for (size_t r = 1; r < labels.size(); ++r)
        check(labels[r] == labels[0], "log: all processes must log the same with sync_dist, got ",
              labels[0], " on rank 0 and ", labels[r], " on rank ", r);
    }
    return reduced(rows, how);
  } catch (const dist::TimeoutError& error) {
    throw dist::TimeoutError(in_front(error));
  } catch (const CommError& error) {
    throw CommError(in_front(error));
  }
}

}  // namespace cairn::trainer

// Buckets, the block of buffers, and the comparison of ranks.
#include "cairn/dist/ddp_layout.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <sstream>

#include "cairn/autograd/record.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"

namespace cairn::dist {
namespace {

constexpr double kMiB = 1024 * 1024;

size_t index_of(const NamedTensors& parameters, const Tensor& parameter) {
  const auto at = std::find_if(parameters.begin(), parameters.end(),
                               [&](const auto& p) { return p.second.same_as(parameter); });
  return static_cast<size_t>(at - parameters.begin());
}

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

uint64_t hash_of(const std::string& text) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211u;
  return hash;
}

std::vector<std::string> split(const char* text, size_t size) {
  std::vector<std::string> lines;
  std::istringstream stream(std::string(text, size));
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

}  // namespace

BucketPlan plan_buckets(const std::vector<ParameterArena>& arenas, const NamedTensors& parameters,
                        double first_mb, double cap_mb) {
  BucketPlan plan;
  std::vector<size_t> newest;  // of each bucket, the number of its last parameter
  for (size_t a = 0; a < arenas.size(); ++a) {
    const ParameterArena& arena = arenas[a];
    std::vector<size_t> order(arena.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(),
              [&](size_t i, size_t j) { return arena.offset(i) > arena.offset(j); });
    const int64_t item = item_size(arena.data().dtype());
    bool open = false;
    for (const size_t i : order) {
      const Tensor& p = arena.parameter(i);
      const int64_t end = arena.offset(i) + p.numel();
      // Memory between parameters that belongs to somebody else must not be reduced.
      const bool apart = open && plan.buckets.back().begin - end >= kArenaAlignment / item;
      if (!open || apart) {
        plan.buckets.push_back({.arena = a, .begin = arena.offset(i), .end = end, .leaves = {}});
        newest.push_back(0);
      }
      Bucket& bucket = plan.buckets.back();
      bucket.begin = arena.offset(i);
      const size_t number = index_of(parameters, p);
      newest.back() = std::max(newest.back(), number);
      bucket.leaves.push_back(plan.leaves.size());
      plan.leaves.push_back({.name = parameters[number].first,
                             .parameter = p,
                             .gradient_view = {},
                             .bucket = plan.buckets.size() - 1,
                             .offset = arena.offset(i)});
      const double cap = plan.buckets.size() == 1 ? first_mb : cap_mb;
      open = static_cast<double>((bucket.end - bucket.begin) * item) < cap * kMiB;
    }
  }
  // Several arenas: the bucket with the newest parameter is ready first.
  std::vector<size_t> order(plan.buckets.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t i, size_t j) { return newest[i] > newest[j]; });
  std::vector<Bucket> sorted;
  for (const size_t i : order) {
    for (const size_t leaf : plan.buckets[i].leaves) {
      plan.leaves[leaf].bucket = sorted.size();
      plan.leaves[leaf].offset -= plan.buckets[i].begin;
    }
    sorted.push_back(std::move(plan.buckets[i]));
  }
  plan.buckets = std::move(sorted);
  return plan;
}

Tensor own_view(const Tensor& flat, int64_t begin, int64_t end) {
  const int64_t item = item_size(flat.dtype());
  const auto storage =
      std::make_shared<Storage>(static_cast<std::byte*>(flat.raw_data()) + begin * item,
                                (end - begin) * item, flat.device(), flat.storage());
  return Tensor(storage, flat.dtype(), {end - begin}, {1}, 0);
}

Tensor flatten_buffers(const NamedTensors& buffers, ProcessGroup& group) {
  int64_t total = 0;
  for (size_t i = 0; i < buffers.size(); ++i) {
    total += round_up(buffers[i].second.nbytes(), kArenaAlignment);
    for (size_t j = 0; j < i; ++j)
      check(buffers[i].second.storage() != buffers[j].second.storage() ||
                buffers[i].second.numel() == 0,
            "ddp: buffers must not share memory, got ", buffers[j].first, " and ",
            buffers[i].first);
  }
  if (total == 0) return {};
  const Tensor flat = group.shared_tensor(total, DType::u8);
  const NoGrad no_grad;
  int64_t at = 0;
  for (const auto& [name, buffer] : buffers) {
    // Blocks of their own: one buffer's write must not look like a write into the others.
    const Tensor bytes = own_view(flat, at, at + buffer.nbytes());
    const Shape strides = buffer.is_dense() ? buffer.strides() : contiguous_strides(buffer.shape());
    const Tensor data(bytes.storage(), buffer.dtype(), buffer.shape(), strides, 0);
    raw::copy_(data, buffer);
    buffer.set_data(data);
    at += round_up(buffer.nbytes(), kArenaAlignment);
  }
  return flat;
}

// Two numbers tell whether all are equal; only where they are not, the texts travel.
void check_equal_lines(const char* what, const std::vector<std::string>& lines,
                       ProcessGroup& group) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  const auto size = static_cast<int64_t>(text.size());
  const Device device = group.device();
  const auto on_host = [](const Tensor& t) { return raw::to(t, t.dtype(), kCPU); };

  const Tensor mine = zeros({2}, {DType::i64});
  mine.data<int64_t>()[0] = size;
  mine.data<int64_t>()[1] = static_cast<int64_t>(hash_of(text));
  Tensor all = zeros({group.size(), 2}, {DType::i64, device});
  group.all_gather(all, raw::to(mine, DType::i64, device));
  all = on_host(all);
  const auto* numbers = all.data<int64_t>();
  bool equal = true;
  int64_t longest = 1;
  for (int r = 0; r < group.size(); ++r) {
    longest = std::max(longest, numbers[2 * r]);
    equal &= numbers[2 * r] == numbers[0] && numbers[2 * r + 1] == numbers[1];
  }
  if (equal) return;

  const Tensor padded = zeros({longest}, {DType::u8});
  std::memcpy(padded.raw_data(), text.data(), text.size());
  Tensor texts = zeros({group.size(), longest}, {DType::u8, device});
  group.all_gather(texts, raw::to(padded, DType::u8, device));
  texts = on_host(texts);
  const auto lines_of = [&](int r) {
    const auto* first = static_cast<const char*>(texts.raw_data()) + r * longest;
    return split(first, static_cast<size_t>(numbers[2 * r]));
  };
  const std::vector<std::string> expected = lines_of(0);
  for (int r = 1; r < group.size(); ++r) {
    const std::vector<std::string> got = lines_of(r);
    const size_t count = std::max(got.size(), expected.size());
    for (size_t i = 0; i < count; ++i) {
      const std::string a = i < expected.size() ? expected[i] : "nothing";
      const std::string b = i < got.size() ? got[i] : "nothing";
      check(a == b, what, " must be the same on all ranks, got '", a, "' on rank 0 and '", b,
            "' on rank ", r);
    }
  }
}

}  // namespace cairn::dist

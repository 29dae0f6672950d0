// The collectives' contract.
#include "tests/dist/contract.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <random>
#include <thread>

#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"

namespace cairn::test {

using namespace dist;

namespace {

constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16,
                             DType::i32, DType::i64, DType::u8};
constexpr ReduceOp kOps[] = {ReduceOp::sum, ReduceOp::avg, ReduceOp::min, ReduceOp::max,
                             ReduceOp::prod};
constexpr int64_t kSizes[] = {0, 1, 3, 1000};

// What rank `rank` gives as element i. Sums of a few are exact in f32 whatever their order, those
// of 16-bit floats are not exact in 16 bits, and products stay small.
double given(DType dtype, ReduceOp op, int rank, int64_t i) {
  if (op == ReduceOp::prod) {
    constexpr double kFactors[] = {1, 2, -1, 1, -2};
    const double factor = kFactors[static_cast<size_t>((i + 2 * rank) % 5)];
    return dtype == DType::u8 ? std::abs(factor) : factor;
  }
  const auto k = static_cast<double>((i * 37 + rank * 101 + i / 7) % 511 - 255);
  if (is_floating(dtype)) return k / 8;
  return dtype == DType::u8 ? std::abs(k) : k;
}

// As the dtype holds it; integers wrap around.
double stored(DType dtype, double value) {
  return dispatch(dtype, [&]<class T>() -> double {
    if constexpr (std::is_same_v<T, uint8_t>)
      return static_cast<double>(static_cast<int64_t>(value) & 0xff);
    else
      return static_cast<double>(static_cast<T>(value));
  });
}

double reduced(DType dtype, ReduceOp op, int size, int64_t i) {
  double out = given(dtype, op, 0, i);
  for (int r = 1; r < size; ++r) {
    const double next = given(dtype, op, r, i);
    switch (op) {
      case ReduceOp::sum:
      case ReduceOp::avg:
        out += next;
        break;
      case ReduceOp::min:
        out = std::min(out, next);
        break;
      case ReduceOp::max:
        out = std::max(out, next);
        break;
      case ReduceOp::prod:
        out *= next;
        break;
    }
  }
  return stored(dtype, op == ReduceOp::avg ? out / size : out);
}

// Shapes in the layouts that callers may give.
enum class Layout { plain, offset, strided, transposed };
constexpr Layout kLayouts[] = {Layout::plain, Layout::offset, Layout::strided, Layout::transposed};

Tensor make_tensor(DType dtype, const Shape& shape, Layout layout) {
  int64_t numel = 1;
  for (int64_t s : shape) numel *= s;
  const TensorOptions options{dtype};
  switch (layout) {
    case Layout::plain:
      break;
    case Layout::offset:
      return raw::view(raw::slice(empty({numel + 1}, options), 0, 1, numel + 1), shape);
    case Layout::strided: {
      Shape wide = shape;
      wide.push_back(2);
      return raw::select(empty(wide, options), static_cast<int64_t>(shape.size()), 1);
    }
    case Layout::transposed: {
      if (shape.size() < 2) break;
      Shape swapped = shape;
      std::swap(swapped[shape.size() - 1], swapped[shape.size() - 2]);
      const auto dim = static_cast<int64_t>(shape.size());
      return raw::transpose(empty(swapped, options), dim - 1, dim - 2);
    }
  }
  return empty(shape, options);
}

template <class Fn>
void fill(const Tensor& t, Fn&& value) {
  const Tensor plain = empty(t.shape(), {t.dtype()});
  dispatch(t.dtype(), [&]<class T>() {
    T* out = plain.data<T>();
    for (int64_t i = 0; i < t.numel(); ++i) out[i] = static_cast<T>(value(i));
  });
  raw::copy_(t, plain);
}

// `relative`: the largest difference allowed, as a part of the value.
template <class Fn>
void expect(const std::string& what, const Tensor& t, Fn&& value, double relative = 0) {
  const Tensor plain = raw::contiguous(t);
  dispatch(t.dtype(), [&]<class T>() {
    const T* got = plain.data<T>();
    for (int64_t i = 0; i < t.numel(); ++i) {
      const auto is = static_cast<double>(got[i]), should = static_cast<double>(value(i));
      check(std::abs(is - should) <= relative * std::abs(should), what, ": element ", i, " of ",
            t.numel(), " must be ", should, ", got ", is);
    }
  });
}

// A third is not exact, and how it is rounded is the backend's affair.
double tolerance(DType dtype, ReduceOp op) {
  if (op != ReduceOp::avg) return 0;
  return dtype == DType::bf16 ? 0x1p-7 : dtype == DType::f16 ? 0x1p-10 : 0x1p-23;
}

void check_reduction(ProcessGroup& group, DType dtype, ReduceOp op, const Shape& shape,
                     Layout layout) {
  const int rank = group.rank(), size = group.size();
  const auto mine = [&](int64_t i) { return given(dtype, op, rank, i); };
  const std::string what = cat(op, " of ", dtype, " ", shape, " in layout ",
                               static_cast<int>(layout), " with ", size, " ranks");
  const double close = tolerance(dtype, op);
  const Tensor t = make_tensor(dtype, shape, layout);
  fill(t, mine);
  group.all_reduce(t, op);
  expect(
      cat("all_reduce ", what), t, [&](int64_t i) { return reduced(dtype, op, size, i); }, close);

  const int root = size / 2;
  fill(t, mine);
  group.reduce(t, root, op);
  expect(
      cat("reduce ", what), t,
      [&](int64_t i) {
        return rank == root ? reduced(dtype, op, size, i) : stored(dtype, mine(i));
      },
      close);

  Shape whole{size};
  for (int64_t s : shape) whole.push_back(s);
  const Tensor parts = make_tensor(dtype, whole, layout);
  fill(parts, mine);
  group.reduce_scatter(t, parts, op);
  const int64_t first = rank * t.numel();
  expect(
      cat("reduce_scatter ", what), t,
      [&](int64_t i) { return reduced(dtype, op, size, first + i); }, close);
  expect("reduce_scatter leaves its input", parts,
         [&](int64_t i) { return stored(dtype, mine(i)); });
}

Shape shape_of(int64_t numel) { return numel == 1000 ? Shape{20, 50} : Shape{numel}; }

void check_extremes_of(ProcessGroup& group) {
  const int size = group.size();
  const Tensor ints = full({3}, 0, {DType::i32});
  for (int64_t i = 0; i < 3; ++i) ints.data<int32_t>()[i] = std::numeric_limits<int32_t>::max();
  group.all_reduce(ints);
  const auto wrapped = static_cast<int32_t>(static_cast<uint32_t>(size) * 0x7fffffffu);
  expect("sums of i32 wrap around", ints, [&](int64_t) { return wrapped; });

  for (ReduceOp op : {ReduceOp::min, ReduceOp::max}) {
    const Tensor t = full({5}, group.rank());
    if (group.rank() == size - 1) t.data<float>()[2] = std::nanf("");
    group.all_reduce(t, op);
    check(std::isnan(t.data<float>()[2]) && !std::isnan(t.data<float>()[3]), op,
          ": a NaN must stay one, got ", t.data<float>()[2]);
  }
}

void check_moves_of(ProcessGroup& group, DType dtype, const Shape& shape, Layout layout) {
  const int rank = group.rank(), size = group.size();
  const std::string what = cat(" of ", dtype, " ", shape, " with ", size, " ranks");
  const auto value = [&](int64_t seed, int64_t i) {
    return stored(dtype, given(dtype, ReduceOp::sum, static_cast<int>(seed), i));
  };
  const Tensor t = make_tensor(dtype, shape, layout);
  Shape whole{size};
  for (int64_t s : shape) whole.push_back(s);
  const Tensor all = make_tensor(dtype, whole, layout);
  const int64_t n = t.numel();

  fill(t, [&](int64_t i) { return value(rank, i); });
  group.all_gather(all, t);
  expect(cat("all_gather", what), all, [&](int64_t i) { return value(i / n, i % n); });

  for (int root : {0, size - 1}) {
    fill(t, [&](int64_t i) { return value(rank, i); });
    group.broadcast(t, root);
    expect(cat("broadcast", what), t, [&](int64_t i) { return value(root, i); });

    if (rank == root) fill(all, [&](int64_t i) { return value(root + 3, i); });
    group.scatter(t, rank == root ? all : Tensor(), root);
    expect(cat("scatter", what), t, [&](int64_t i) { return value(root + 3, rank * n + i); });

    fill(t, [&](int64_t i) { return value(rank + 5, i); });
    group.gather(rank == root ? all : Tensor(), t, root);
    if (rank == root)
      expect(cat("gather", what), all, [&](int64_t i) { return value(i / n + 5, i % n); });
  }

  const Tensor out = make_tensor(dtype, whole, layout);
  fill(all, [&](int64_t i) { return value(rank, i); });
  group.all_to_all(out, all);
  expect(cat("all_to_all", what), out, [&](int64_t i) { return value(i / n, rank * n + i % n); });

  // Everyone passes its tensor on to the next: even ranks send first.
  if (size > 1) {
    const int next = (rank + 1) % size, before = (rank + size - 1) % size;
    const Tensor from = make_tensor(dtype, shape, layout);
    fill(t, [&](int64_t i) { return value(rank, i); });
    if (rank % 2 == 0) group.send(t, next);
    group.recv(from, before);
    if (rank % 2 == 1) group.send(t, next);
    expect(cat("recv", what), from, [&](int64_t i) { return value(before, i); });
  }
}

}  // namespace

std::vector<std::string> errors_of_ranks(const MakeGroup& make, int size, const RankBody& body,
                                         Milliseconds timeout) {
  const auto store = memory_store();
  std::vector<std::string> errors(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank] {
      try {
        const auto group = make({.rank = rank, .size = size, .store = store, .timeout = timeout});
        body(*group);
      } catch (const std::exception& error) {
        errors[static_cast<size_t>(rank)] = error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return errors;
}

void run_ranks(const MakeGroup& make, int size, const RankBody& body, Milliseconds timeout) {
  const std::vector<std::string> errors = errors_of_ranks(make, size, body, timeout);
  std::string all;
  for (size_t r = 0; r < errors.size(); ++r)
    if (!errors[r].empty()) all += cat(all.empty() ? "" : "\n", "rank ", r, ": ", errors[r]);
  check(all.empty(), all);
}

void check_reductions(const MakeGroup& make, int size) {
  run_ranks(make, size, [](ProcessGroup& group) {
    for (DType dtype : kDTypes)
      for (ReduceOp op : kOps) {
        if (op == ReduceOp::avg && !is_floating(dtype)) continue;
        for (int64_t numel : kSizes)
          check_reduction(group, dtype, op, shape_of(numel), Layout::plain);
      }
    for (Layout layout : kLayouts)
      for (DType dtype : {DType::f32, DType::bf16, DType::u8})
        for (int64_t numel : kSizes)
          check_reduction(group, dtype, ReduceOp::sum, shape_of(numel), layout);
    // Many times what a message holds, and no multiple of anything.
    check_reduction(group, DType::f32, ReduceOp::sum, {300007}, Layout::plain);
    check_reduction(group, DType::bf16, ReduceOp::avg, {300007}, Layout::offset);
  });
}

void check_extremes(const MakeGroup& make, int size) { run_ranks(make, size, check_extremes_of); }

void check_moves(const MakeGroup& make, int size) {
  run_ranks(make, size, [](ProcessGroup& group) {
    for (DType dtype : kDTypes)
      for (int64_t numel : kSizes) check_moves_of(group, dtype, shape_of(numel), Layout::plain);
    for (Layout layout : kLayouts) check_moves_of(group, DType::f16, shape_of(1000), layout);
    check_moves_of(group, DType::f32, {100003}, Layout::offset);
    for (int i = 0; i < 20; ++i) group.barrier();
  });
}

void check_same_bits(const MakeGroup& make, int size) {
  run_ranks(make, size, [&](ProcessGroup& group) {
    for (int64_t numel : {int64_t{17}, int64_t{5000}, int64_t{200001}}) {
      Tensor first;
      for (int round = 0; round < 3; ++round) {
        std::mt19937 random(static_cast<unsigned>(100 + group.rank()));
        const Tensor t = empty({numel}, {DType::f32});
        fill(t, [&](int64_t) { return std::normal_distribution<float>()(random); });
        if (round == 1) std::this_thread::sleep_for(Milliseconds(3 * group.rank()));
        group.all_reduce(t, ReduceOp::avg);
        if (round == 0) first = t;
        check(std::memcmp(t.raw_data(), first.raw_data(), static_cast<size_t>(t.nbytes())) == 0,
              "all_reduce must give the same bits every time, got others in round ", round);
      }
      const Tensor all = empty({size, numel}, {DType::f32});
      group.all_gather(all, first);
      for (int64_t r = 0; r < size; ++r)
        check(std::memcmp(raw::select(all, 0, r).raw_data(), first.raw_data(),
                          static_cast<size_t>(first.nbytes())) == 0,
              "all ranks must hold the same bits, got others on rank ", r);
    }
  });
}

void check_zeros(const MakeGroup& make, int size) {
  run_ranks(make, size, [&](ProcessGroup& group) {
    constexpr int64_t kNumel = 120000;
    const kernels::ZeroRanges some = {{10, 20}, {30000, 80000}, {110000, kNumel}};
    const kernels::ZeroRanges other = {{30000, 79999}};
    const kernels::ZeroRanges all = {{0, kNumel}};
    const auto inside = [](const kernels::ZeroRanges& ranges, int64_t i) {
      return std::any_of(ranges.begin(), ranges.end(), [&](const kernels::ZeroRange& range) {
        return range.begin <= i && i < range.end;
      });
    };
    // By round, what an even and what an odd rank knows.
    const std::pair<kernels::ZeroRanges, kernels::ZeroRanges> rounds[] = {
        {some, some}, {some, other}, {some, {}}, {{}, some}, {all, all}, {all, some}, {{}, {}}};
    for (DType dtype : {DType::f32, DType::bf16})
      for (const auto& [even, odd] : rounds) {
        const Tensor t = empty({kNumel}, {dtype});
        const auto value = [&](int rank, int64_t i) {
          return inside(rank % 2 == 0 ? even : odd, i) ? 0.0 : given(dtype, ReduceOp::sum, rank, i);
        };
        fill(t, [&](int64_t i) { return value(group.rank(), i); });
        ReduceOptions options;
        options.zeros = group.rank() % 2 == 0 ? &even : &odd;
        group.all_reduce(t, ReduceOp::sum, options);
        expect("all_reduce with zeros", t, [&](int64_t i) {
          double sum = 0;
          for (int r = 0; r < size; ++r) sum += value(r, i);
          return stored(dtype, sum);
        });
      }
  });
}

void check_async(const MakeGroup& make, int size) {
  run_ranks(make, size, [&](ProcessGroup& group) {
    constexpr int kCalls = 40;
    std::vector<Tensor> tensors, gathered;
    std::vector<Work> works;
    for (int k = 0; k < kCalls; ++k) {
      tensors.push_back(full({k % 2 == 0 ? 7 : 20000}, group.rank() + k));
      gathered.push_back(raw::select(empty({size, 3, 2}), 2, 0));
      works.push_back(group.all_reduce(tensors.back(), ReduceOp::sum, {{.async_op = true}}));
      works.push_back(
          group.all_gather(gathered.back(), full({3}, group.rank() * k), {.async_op = true}));
    }
    group.barrier();  // behind all of them
    for (const Work& work : works) {
      work.wait();
      work.wait();
      check(work.is_completed(), "async: a work that was waited for must be completed");
    }
    for (int k = 0; k < kCalls; ++k) {
      const auto at = static_cast<size_t>(k);
      expect("async all_reduce", tensors[at],
             [&](int64_t) { return size * (size - 1) / 2 + size * k; });
      expect("async all_gather", gathered[at], [&](int64_t i) { return i / 3 * k; });
    }
    // A group may be let go of while the work is still held.
    check(group.sequence() == 2 * kCalls + 1, "sequence must be ", 2 * kCalls + 1, ", got ",
          group.sequence());
  });
}

void check_groups(const MakeGroup& make, int size) {
  run_ranks(make, size, [&](ProcessGroup& group) {
    // The even ranks backwards, and everybody again.
    std::vector<int> even, every;
    for (int r = size - 1; r >= 0; --r)
      if (r % 2 == 0) even.push_back(r);
    for (int r = 0; r < size; ++r) every.push_back(r);
    const auto half = group.subgroup(even, "even");
    const auto twin = group.subgroup(every, "twin");
    check((half != nullptr) == (group.rank() % 2 == 0), "subgroup: only members get a group");
    check(twin->size() == size && twin->rank() == group.rank() &&
              twin->backend() == (size == 1 ? twin->backend() : group.backend()),
          "subgroup: the twin must be like the group");
    if (half) {
      const Tensor t = full({5}, group.rank());
      half->broadcast(t, 0);
      expect("broadcast in a subgroup", t, [&](int64_t) { return even[0]; });
    }
    // Two groups at once, from two threads.
    std::exception_ptr failure;
    std::thread other([&] {
      try {
        for (int k = 0; k < 30; ++k) {
          const Tensor t = full({k * 700}, k);
          twin->all_reduce(t);
          expect("all_reduce in the twin", t, [&](int64_t) { return size * k; });
        }
      } catch (...) {
        failure = std::current_exception();
      }
    });
    try {
      for (int k = 0; k < 30; ++k) {
        const Tensor t = full({k * 900}, 2 * k);
        group.all_reduce(t);
        expect("all_reduce beside the twin", t, [&](int64_t) { return 2 * size * k; });
      }
    } catch (...) {
      other.join();
      throw;
    }
    other.join();
    if (failure) std::rethrow_exception(failure);
  });
}

void check_contract(const MakeGroup& make, int size) {
  check_reductions(make, size);
  check_extremes(make, size);
  check_moves(make, size);
  check_same_bits(make, size);
  check_zeros(make, size);
  check_async(make, size);
  check_groups(make, size);
  if (size == 1) return;
  check_mismatches(make, size);
  check_silence(make, size);
  check_early_end(make, size);
}

void check_large(const MakeGroup& make, int size, int64_t numel) {
  run_ranks(make, size, [&](ProcessGroup& group) {
    const auto value = [&](int rank, int64_t i) {
      return static_cast<float>((i * 7 + rank) % 1001);
    };
    const Tensor t = empty({numel});
    float* data = t.data<float>();
    for (int64_t i = 0; i < numel; ++i) data[i] = value(group.rank(), i);
    group.all_reduce(t);
    for (int64_t i = 0; i < numel; ++i) {
      float sum = 0;
      for (int r = 0; r < size; ++r) sum += value(r, i);
      check(data[i] == sum, "all_reduce: element ", i, " must be ", sum, ", got ", data[i]);
    }
    if (group.rank() == 0) raw::fill_(t, 3);
    group.broadcast(t, 0);
    check(data[0] == 3 && data[numel / 2] == 3 && data[numel - 1] == 3,
          "broadcast: elements must be 3");
    const Tensor all = empty({size, numel});
    raw::fill_(t, group.rank());
    group.all_gather(all, t);
    for (int64_t r = 0; r < size; ++r)
      check(raw::select(all, 0, r).data<float>()[numel - 1] == static_cast<float>(r),
            "all_gather: part ", r, " must be of rank ", r);
  });
}

}  // namespace cairn::test

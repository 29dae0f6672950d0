// Comparisons, tests and choice: kernels whose output or condition is bool.
// Invariant: choosing moves bits, so it knows elements by their size alone.
#include <bit>

#include "cairn/kernels/cuda/loops.cuh"

namespace cairn::kernels::cuda {
namespace {

template <class F, class C>
struct Compared {
  __device__ __forceinline__ bool operator()(C a, C b) const { return F::f(a, b); }
};

template <class F>
void compare(const char* name, Out y, const Operand& a, const Operand& b) {
  const DType dtype = a.tensor != nullptr ? a.tensor->dtype() : b.tensor->dtype();
  dispatch(dtype, [&]<class T>() {
    run_loop<bool, false>(name, y, false, Compared<F, Compute<T>>{}, Source<T>(a), Source<T>(b));
  });
}

template <class F, class C>
struct Tested {
  __device__ __forceinline__ bool operator()(C x) const { return F::f(x); }
};

template <class F>
void test(const char* name, Out y, In x) {
  dispatch(x.dtype(), [&]<class T>() {
    run_loop<bool, false>(name, y, false, Tested<F, Compute<T>>{}, Source<T>(x));
  });
}

template <class Bits>
struct Chosen {
  __device__ __forceinline__ Bits operator()(bool condition, Bits a, Bits b) const {
    return condition ? a : b;
  }
};

template <class T, class Bits>
Source<Bits> bits_of(const Operand& operand) {
  Source<Bits> source;
  source.tensor = operand.tensor;
  if (operand.tensor == nullptr)
    source.number = std::bit_cast<Bits>(static_cast<T>(Source<T>(operand).number));
  return source;
}

void where_forward(Out y, In condition, const Operand& a, const Operand& b) {
  dispatch(y.dtype(), [&]<class T>() {
    using Bits = std::conditional_t<
        sizeof(T) == 8, uint64_t,
        std::conditional_t<sizeof(T) == 4, uint32_t,
                           std::conditional_t<sizeof(T) == 2, uint16_t, uint8_t>>>;
    run_loop<Bits, false>("where_fwd", y, false, Chosen<Bits>{}, Source<bool>(condition),
                          bits_of<T, Bits>(a), bits_of<T, Bits>(b));
  });
}

template <class C>
struct Kept {
  bool side;

  __device__ __forceinline__ C operator()(C g, bool condition) const {
    return condition == side ? g : C{};
  }
};

void where_backward(const Dst& d, bool side, In g, In condition) {
  if (!d) return;
  dispatch_floating(g.dtype(), "where", [&]<class T>() {
    run_gradient<T>("where_bwd", d, Kept<Compute<T>>{side}, Source<T>(g), Source<bool>(condition));
  });
}

}  // namespace

void fill_compare() {
#define CAIRN_FILL(name, Functor)                                                   \
  name##_fwd.fill(DeviceType::cuda, [](Out y, const Operand& a, const Operand& b) { \
    compare<functors::Functor>(#name, y, a, b);                                     \
  });
  CAIRN_COMPARE(CAIRN_FILL)
#undef CAIRN_FILL
#define CAIRN_FILL(name, Functor)   \
  name##_fwd.fill(DeviceType::cuda, \
                  [](Out y, In x, const Attributes&) { test<functors::Functor>(#name, y, x); });
  CAIRN_TEST(CAIRN_FILL)
#undef CAIRN_FILL
  where_fwd.fill(DeviceType::cuda, where_forward);
  where_bwd.fill(DeviceType::cuda, where_backward);
}

}  // namespace cairn::kernels::cuda

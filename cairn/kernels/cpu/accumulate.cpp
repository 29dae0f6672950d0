// accumulate_to: handing a gradient over to its tensor.
// Invariant: a broadcast destination gets sums in blocks of fixed size, see reduce_driver.h; f64 if
// either side is f64, else in f32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/accumulate.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/cpu/loops.h"
#include "cairn/kernels/cpu/reduce_driver.h"
#include "cairn/kernels/cpu/rows.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

// d (+)= g, converted.
template <class D, class G>
HWY_ATTR void accumulate_row(std::byte* const* at, const int64_t* step, int64_t n,
                             const RowContext& context) {
  // f64 if either side is.
  using C =
      std::conditional_t<std::is_same_v<D, double> || std::is_same_v<G, double>, double, float>;
  const auto wide = [](auto v) HWY_ATTR {
    if constexpr (kIsHalf<decltype(v)>)
      return static_cast<C>(static_cast<float>(v));
    else
      return static_cast<C>(v);
  };
  if (step[0] == sizeof(D) && step[1] == sizeof(G)) {
    D* d = reinterpret_cast<D*>(at[0]);
    const G* g = reinterpret_cast<const G*>(at[1]);
    if (context.add) {
      CAIRN_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) d[i] = static_cast<D>(wide(d[i]) + wide(g[i]));
    } else {
      CAIRN_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) d[i] = static_cast<D>(wide(g[i]));
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    D& d = *reinterpret_cast<D*>(at[0] + i * step[0]);
    const C v = wide(*reinterpret_cast<const G*>(at[1] + i * step[1]));
    d = static_cast<D>(context.add ? wide(d) + v : v);
  }
}

Row pick_accumulate(DType dst, DType src) {
  return dispatch_floating(dst, "accumulate_to", [&]<class D>() -> Row {
    return dispatch(src, []<class G>() -> Row { return accumulate_row<D, G>; });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {

HWY_EXPORT(pick_accumulate);

namespace {

template <class D, class G, class Acc>
void accumulate_sums(const Dst& dst, const Tensor& src) {
  constexpr bool kWide = !std::is_same_v<Acc, Accumulate<G>>;
  const auto& rows =
      *static_cast<const ReduceRows<G, Acc>*>(reduce_rows(ReduceKind::sum, dtype_of<G>(), kWide));
  const ReducePlan plan = plan_reduction(dst.tensor, src);
  D* out = dst.tensor.data<D>();
  Reduction<SumOp, G, Acc>(plan, src.data<G>(), rows).run([&](int64_t at, Acc sum) {
    using C = std::conditional_t<std::is_integral_v<Acc>, double, Acc>;
    const C total = static_cast<C>(sum);
    out[at] = static_cast<D>(dst.add ? static_cast<C>(out[at]) + total : total);
  });
}

void accumulate(const Dst& dst, const Tensor& src) {
  if (!dst || dst.tensor.numel() == 0) return;
  if (dst.tensor.shape() == src.shape()) {
    constexpr int64_t kGrain = 32768;  // elements worth a thread
    const Row row = HWY_DYNAMIC_DISPATCH(pick_accumulate)(dst.tensor.dtype(), src.dtype());
    Loop(dst.tensor).add_tensor(src).run(row, {0, 0, dst.add}, kGrain);
    return;
  }
  dispatch_floating(dst.tensor.dtype(), "accumulate_to", [&]<class D>() {
    dispatch(src.dtype(), [&]<class G>() {
      constexpr bool kWide = std::is_same_v<D, double> && !std::is_integral_v<G>;
      using Acc = std::conditional_t<kWide, double, Accumulate<G>>;
      accumulate_sums<D, G, Acc>(dst, src);
    });
  });
}

}  // namespace
}  // namespace cpu

Slot<void(const Dst& dst, In src)> accumulate_to{"accumulate_to", cpu::accumulate};

}  // namespace cairn::kernels
#endif  // HWY_ONCE

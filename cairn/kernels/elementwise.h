// Slots of elementwise kernels, one per row of functors.h.
// Invariant: all tensors of a call have the output's shape or broadcast to it; any strides.
// Floating and integer operands of one call share one dtype; converting them is the op's business.
#pragma once

#include "cairn/kernels/functors.h"
#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// Attributes of a unary op (see the functor's comment).
struct Attributes {
  double a = 0;
  double b = 0;
};

// A tensor or a number. The number is used in the compute type: f32 beside bf16 and f16, exact
// beside i64.
struct Operand {
  Operand(const Tensor& t) : tensor(&t) {}
  Operand(double floating, int64_t integer) : floating(floating), integer(integer) {}

  const Tensor* tensor = nullptr;  // null: the number
  double floating = 0;
  int64_t integer = 0;
};
inline void note(profiler::Work& work, const Operand& operand) {
  if (operand.tensor != nullptr) work.tensor(*operand.tensor);
}

// y = f(x). y may be x itself.
using UnaryFwd = Slot<void(Out y, In x, const Attributes& attributes)>;
// dx (+)= df(g, saved); saved is the forward's input or output, as the functor says, or g itself.
// Overwritten, dx may be g.
using UnaryBwd = Slot<void(const Dst& dx, In g, In saved, const Attributes& attributes)>;
// y = f(a, b). y may be a or b itself.
using BinaryFwd = Slot<void(Out y, const Operand& a, const Operand& b)>;
// d (+)= the gradient of operand `which` (0 or 1); g, a, b broadcast to d. Operands that the
// functor does not read may be any number.
using BinaryBwd = Slot<void(const Dst& d, int which, In g, const Operand& a, const Operand& b)>;

#define CAIRN_SLOTS(name, Functor) \
  extern UnaryFwd name##_fwd;      \
  extern UnaryBwd name##_bwd;
CAIRN_UNARY(CAIRN_SLOTS)
#undef CAIRN_SLOTS

#define CAIRN_SLOTS(name, Functor) \
  extern BinaryFwd name##_fwd;     \
  extern BinaryBwd name##_bwd;
CAIRN_BINARY(CAIRN_SLOTS)
#undef CAIRN_SLOTS

// y (bool) = f(a, b), of operands of any one dtype.
#define CAIRN_SLOTS(name, Functor) extern BinaryFwd name##_fwd;
CAIRN_COMPARE(CAIRN_SLOTS)
#undef CAIRN_SLOTS

// y (bool) = f(x), x of any dtype.
#define CAIRN_SLOTS(name, Functor) extern UnaryFwd name##_fwd;
CAIRN_TEST(CAIRN_SLOTS)
#undef CAIRN_SLOTS

// y = a + b * scale, for `x += scale * y`. y may be a.
extern Slot<void(Out y, const Operand& a, const Operand& b, double scale)> add_scaled_fwd;
// y = condition (bool) ? a : b.
extern Slot<void(Out y, In condition, const Operand& a, const Operand& b)> where_fwd;
// d (+)= condition == side ? g : 0.
extern Slot<void(const Dst& d, bool side, In g, In condition)> where_bwd;

}  // namespace cairn::kernels

// backward() and the gradients of leaves.
#pragma once

#include <functional>
#include <span>

#include "cairn/autograd/node.h"
#include "cairn/autograd/record.h"

namespace cairn {

// Makes `t` a leaf that wants a gradient, or no longer. Floating dtypes only.
const Tensor& set_requires_grad(const Tensor& t, bool value = true);

// Computes d(root)/d(leaf) for every leaf below `root` and adds it to the leaf's gradient (or
// overwrites, after zero_grad). `grad` is the gradient of root, of its shape; absent it is 1 and
// root must have one element. The graph is freed on the way: a second backward through it is an
// error. First derivatives only.
void backward(const Tensor& root, const Tensor& grad = {});

// The gradient of a leaf, of its shape and dtype; undefined when there is none. It is the memory
// that the optimizer reads, not a copy.
Tensor grad(const Tensor& leaf);
// Stretches of the gradient's memory that only hold zeros because the last backward never reaches
// them (taps of a convolution over padding); empty where nothing is known. Valid until the gradient
// is written or asked for.
const kernels::ZeroPattern& grad_zeros(const Tensor& leaf);
// For an op that wrote into the gradient and kept its zeros.
void keep_grad_zeros(const Tensor& leaf);
// For who launches a captured backward: the zeros in a leaf's gradient memory, whether it holds a
// gradient or not; and says that they are there now, which the capture must have left.
kernels::ZeroPattern memory_zeros(const Tensor& leaf);
void set_memory_zeros(const Tensor& leaf, const kernels::ZeroPattern& zeros);
// Whether the leaf has a gradient, without handing it out.
bool has_grad(const Tensor& leaf);
// For one that wrote a gradient into the leaf's gradient memory, which must be there.
void declare_grad(const Tensor& leaf);
// Forgets the gradient; its memory is kept and overwritten by the next backward.
void zero_grad(const Tensor& leaf);
void zero_grad(std::span<const Tensor> leaves);
// Gives a leaf its gradient memory (of its shape, dtype and device), as an arena does. `zeros`: the
// memory holds zeros.
void set_grad_memory(const Tensor& leaf, const Tensor& memory, bool zeros = false);
// Sets a leaf's gradient to a copy of `value`.
void set_grad(const Tensor& leaf, const Tensor& value);

// Called with the finished gradient once per backward that reaches the leaf.
void on_grad_ready(const Tensor& leaf, std::function<void(const Tensor& grad)> hook);
// The same without the gradient: what is known of its zeros stays known.
void on_leaf_ready(const Tensor& leaf, std::function<void()> hook);
// For hooks: called once when the running backward of this thread ends. finished: it came to its
// end, and what `end` throws leaves backward(); else it threw, and `end` must not throw.
void after_backward(std::function<void(bool finished)> end);

// A tensor on the same memory that takes no part in the graph.
Tensor detach(const Tensor& t);

}  // namespace cairn

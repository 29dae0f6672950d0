// What DDP makes of a model before it trains: buckets over gradients, and buffers in one block.
// Invariant: both depend on the tensors' shapes, dtypes and order alone, so all ranks have the
// same.
#pragma once

#include <string>
#include <vector>

#include "cairn/autograd/arena.h"
#include "cairn/dist/ddp.h"

namespace cairn::dist {

// A parameter that requires a gradient.
struct Leaf {
  std::string name;
  Tensor parameter;
  Tensor gradient_view;  // an alias of its part of the arena, to tell when that moved
  size_t bucket = 0;
  int64_t offset = 0;  // in the bucket
};

// A stretch of an arena's gradients.
struct Bucket {
  size_t arena = 0;
  int64_t begin = 0, end = 0;  // elements of ParameterArena::grads()
  std::vector<size_t> leaves;  // indices
};

// Leaves by order of memory in each arena, and the buckets in the order in which they are reduced.
struct BucketPlan {
  std::vector<Leaf> leaves;
  std::vector<Bucket> buckets;
};
BucketPlan plan_buckets(const std::vector<ParameterArena>& arenas, const NamedTensors& parameters,
                        double first_mb, double cap_mb);

// A stretch of memory as a 1-d tensor of its own, whose writes bump no other tensor's version.
Tensor own_view(const Tensor& flat, int64_t begin, int64_t end);

// Moves the buffers, which stay the same handles, into one block of u8 and returns it; undefined
// where there are none. Buffers that share memory are an Error.
Tensor flatten_buffers(const NamedTensors& buffers, ProcessGroup& group);

// Throws on all ranks where the lines of one differ from rank 0's. Collective.
void check_equal_lines(const char* what, const std::vector<std::string>& lines,
                       ProcessGroup& group);

}  // namespace cairn::dist

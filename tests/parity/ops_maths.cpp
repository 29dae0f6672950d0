// How the cases of elementwise maths, reductions and moves call Cairn.
// Invariant: one entry per op name of ops.json, and nothing but public ops in it.
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/reduce.h"
#include "tests/parity/case.h"

namespace cairn::parity {
namespace {

using Outputs = std::vector<Tensor>;

void add_unary(Runs& runs) {
#define CAIRN_RUN(name) runs[#name] = [](Case& c) { return Outputs{cairn::name(c.in("x"))}; };
  CAIRN_RUN(exp)
  CAIRN_RUN(log)
  CAIRN_RUN(sqrt)
  CAIRN_RUN(rsqrt)
  CAIRN_RUN(abs)
  CAIRN_RUN(neg)
  CAIRN_RUN(square)
  CAIRN_RUN(reciprocal)
  CAIRN_RUN(sin)
  CAIRN_RUN(cos)
  CAIRN_RUN(erf)
  CAIRN_RUN(log1p)
  CAIRN_RUN(expm1)
  CAIRN_RUN(log2)
  CAIRN_RUN(floor)
  CAIRN_RUN(ceil)
  CAIRN_RUN(round)
  CAIRN_RUN(sign)
#undef CAIRN_RUN
  runs["pow_scalar"] = [](Case& c) {
    return Outputs{cairn::pow(c.in("x"), Scalar(c.get<double>("exponent")))};
  };
  runs["clamp"] = [](Case& c) {
    return Outputs{clamp(c.in("x"), c.get_or_none<double>("min"), c.get_or_none<double>("max"))};
  };
}

void add_binary(Runs& runs) {
#define CAIRN_RUN(name) \
  runs[#name] = [](Case& c) { return Outputs{cairn::name(c.in("a"), c.in("b"))}; };
  CAIRN_RUN(add)
  CAIRN_RUN(sub)
  CAIRN_RUN(mul)
  CAIRN_RUN(div)
  CAIRN_RUN(pow)
  CAIRN_RUN(maximum)
  CAIRN_RUN(minimum)
  CAIRN_RUN(eq)
  CAIRN_RUN(ne)
  CAIRN_RUN(lt)
  CAIRN_RUN(le)
  CAIRN_RUN(gt)
  CAIRN_RUN(ge)
  CAIRN_RUN(floor_divide)
  CAIRN_RUN(remainder)
#undef CAIRN_RUN
  runs["where"] = [](Case& c) {
    return Outputs{cairn::where(c.in("condition"), c.in("a"), c.in("b"))};
  };
}

void add_reductions(Runs& runs) {
#define CAIRN_RUN(name)                                                             \
  runs[#name] = [](Case& c) {                                                       \
    return Outputs{cairn::name(c.in("x"), c.shape("dim"), c.get<bool>("keepdim"))}; \
  };
  CAIRN_RUN(sum)
  CAIRN_RUN(mean)
  CAIRN_RUN(amax)
  CAIRN_RUN(amin)
  CAIRN_RUN(logsumexp)
#undef CAIRN_RUN
#define CAIRN_RUN(name)                                                                    \
  runs[#name] = [](Case& c) {                                                              \
    return Outputs{cairn::name(c.in("x"), c.shape("dim"), c.get<bool>("unbiased") ? 1 : 0, \
                               c.get<bool>("keepdim"))};                                   \
  };
  CAIRN_RUN(var)
  CAIRN_RUN(std)
#undef CAIRN_RUN
#define CAIRN_RUN(name)                                                                   \
  runs[#name] = [](Case& c) {                                                             \
    const auto dim = c.get_or_none<int64_t>("dim");                                       \
    const bool keepdim = c.get<bool>("keepdim");                                          \
    return Outputs{dim ? cairn::name(c.in("x"), *dim, keepdim) : cairn::name(c.in("x"))}; \
  };
  CAIRN_RUN(argmax)
  CAIRN_RUN(argmin)
#undef CAIRN_RUN
  runs["prod"] = [](Case& c) {
    const Shape dims = c.shape("dim");
    const bool keepdim = c.get<bool>("keepdim");
    check(dims.size() <= 1, "parity: prod must reduce one dimension or all, got ", dims);
    return Outputs{dims.empty() ? prod(c.in("x")) : prod(c.in("x"), dims[0], keepdim)};
  };
  runs["sum_i64"] = [](Case& c) { return Outputs{sum(c.in("x"))}; };
  runs["cumsum"] = [](Case& c) { return Outputs{cumsum(c.in("x"), c.get<int64_t>("dim"))}; };
}

// A result that says of itself whether it is what the case's option asks for: Cairn sorts stably
// and returns the top sorted, always.
void require_true(Case& c, const char* option) {
  check(c.get<bool>(option), "parity: ", c.op(), " must be asked for ", option, ", got false");
}

void add_picks(Runs& runs) {
  runs["gather"] = [](Case& c) {
    return Outputs{gather(c.in("x"), c.get<int64_t>("dim"), c.in("index"))};
  };
  runs["index_select"] = [](Case& c) {
    return Outputs{index_select(c.in("x"), c.get<int64_t>("dim"), c.in("index"))};
  };
  runs["topk"] = [](Case& c) {
    require_true(c, "sorted");
    const auto [values, indices] =
        topk(c.in("x"), c.get<int64_t>("k"), c.get<int64_t>("dim"), c.get<bool>("largest"));
    return Outputs{values, indices};
  };
  runs["sort"] = [](Case& c) {
    require_true(c, "stable");
    const auto [values, indices] =
        cairn::sort(c.in("x"), c.get<int64_t>("dim"), c.get<bool>("descending"));
    return Outputs{values, indices};
  };
  const auto list = [](Case& c) {
    Outputs all;
    for (int64_t i = 0; i < c.input_count(); ++i) all.push_back(c.in("x" + std::to_string(i)));
    return all;
  };
  runs["cat"] = [list](Case& c) { return Outputs{cairn::cat(list(c), c.get<int64_t>("dim"))}; };
  runs["stack"] = [list](Case& c) { return Outputs{stack(list(c), c.get<int64_t>("dim"))}; };
}

void add_views(Runs& runs) {
  runs["permute"] = [](Case& c) { return Outputs{permute(c.in("x"), c.shape("dims"))}; };
  runs["transpose"] = [](Case& c) {
    return Outputs{transpose(c.in("x"), c.get<int64_t>("dim0"), c.get<int64_t>("dim1"))};
  };
  runs["expand"] = [](Case& c) { return Outputs{expand(c.in("x"), c.shape("size"))}; };
  runs["transpose_reshape"] = [](Case& c) {
    return Outputs{reshape(transpose(c.in("x"), 0, 1), c.shape("shape"))};
  };
  runs["slice"] = [](Case& c) {
    return Outputs{slice(c.in("x"), c.get<int64_t>("dim"), c.get<int64_t>("start"),
                         c.get<int64_t>("end"), c.get<int64_t>("step"))};
  };
  runs["select"] = [](Case& c) {
    return Outputs{cairn::select(c.in("x"), c.get<int64_t>("dim"), c.get<int64_t>("index"))};
  };
  runs["flatten"] = [](Case& c) {
    return Outputs{flatten(c.in("x"), c.get<int64_t>("start_dim"), c.get<int64_t>("end_dim"))};
  };
}

}  // namespace

Runs maths_runs() {
  Runs runs;
  add_unary(runs);
  add_binary(runs);
  add_reductions(runs);
  add_picks(runs);
  add_views(runs);
  return runs;
}

}  // namespace cairn::parity

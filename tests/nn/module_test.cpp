// Module: registration, names, order, walking, state dicts and their errors.
#include "cairn/nn/module.h"

#include <map>
#include <memory>
#include <optional>

#include "cairn/autograd/engine.h"
#include "cairn/nn/conv.h"
#include "cairn/tensor/random.h"
#include "tests/catch.h"
#include "tests/nn/helpers.h"
#include "tests/tensor/locked_device.h"

using namespace cairn;
using cairn::test::error_of;
using cairn::test::names_of;
using cairn::test::values_of;

namespace {

using Names = std::vector<std::string>;

struct Leaf : nn::Module {
  explicit Leaf(const nn::Child& place = {}, int64_t size = 2)
      : Module(place), weight(parameter("weight", ones({size}))) {}
  Tensor weight;
  Tensor count = buffer("count", zeros({}, {DType::i64}));
  Tensor scratch = buffer("scratch", zeros({1}), false);
  Tensor bias = parameter("bias", {});
};

struct Branch : nn::Module {
  using Module::Module;
  Leaf right{child("right"), 3};
  Tensor scale = parameter("scale", ones({1}));
  Leaf left{child("left")};
};

// Deeper than one base, as a trainer's module is.
struct Base : nn::Module {
  using Module::Module;
};
struct Root : Base {
  Branch branch{child("branch")};
  Tensor running = buffer("running", zeros({2}));
  Leaf last{child("last")};
};

}  // namespace

TEST_CASE("nn: members register themselves in order of declaration") {
  Root root;
  CHECK(names_of(root.named_parameters()) ==
        Names{"branch.scale", "branch.right.weight", "branch.left.weight", "last.weight"});
  CHECK(names_of(root.state_dict()) == Names{"running", "branch.scale", "branch.right.weight",
                                             "branch.right.count", "branch.left.weight",
                                             "branch.left.count", "last.weight", "last.count"});
  CHECK(names_of(root.named_modules()) ==
        Names{"", "branch", "branch.right", "branch.left", "last"});
  CHECK(names_of(root.named_children()) == Names{"branch", "last"});
  CHECK(root.named_modules()[2].second == &root.branch.right);
  CHECK(names_of(root.named_buffers()) ==
        Names{"running", "branch.right.count", "branch.right.scratch", "branch.left.count",
              "branch.left.scratch", "last.count", "last.scratch"});
  CHECK(root.parameters()[1].same_as(root.branch.right.weight));
  CHECK(requires_grad(root.last.weight));
  CHECK_FALSE(requires_grad(root.running));
  CHECK(root.parameter_count() == 1 + 3 + 2 + 2);
  CHECK_FALSE(root.last.bias.defined());
}

TEST_CASE("nn: a module stands alone as well") {
  Leaf leaf;
  CHECK(names_of(leaf.named_parameters()) == Names{"weight"});
  Branch branch;
  CHECK(branch.parameters().size() == 3);
}

TEST_CASE("nn: train and eval reach every module") {
  Root root;
  CHECK(root.branch.left.training());
  root.branch.eval();
  CHECK(root.training());
  CHECK_FALSE(root.branch.training());
  CHECK_FALSE(root.branch.left.training());
  CHECK(root.last.training());
  root.train();
  CHECK(root.branch.left.training());
  root.eval();
  CHECK_FALSE(root.last.training());
}

TEST_CASE("nn: freezing, gradients and apply") {
  Root root;
  set_grad(root.last.weight, ones({2}));
  root.zero_grad();
  CHECK_FALSE(grad(root.last.weight).defined());
  root.branch.set_requires_grad(false);
  CHECK_FALSE(requires_grad(root.branch.left.weight));
  CHECK(requires_grad(root.last.weight));
  CHECK(root.parameter_count(true) == 2);
  root.branch.set_requires_grad(true);
  CHECK(root.parameter_count(true) == 8);
  std::vector<nn::Module*> order;
  root.apply([&](nn::Module& m) { order.push_back(&m); });
  CHECK(order == std::vector<nn::Module*>{&root.branch.right, &root.branch.left, &root.branch,
                                          &root.last, &root});
}

TEST_CASE("nn: a tensor under two names counts once, and is saved under both") {
  struct Tied : nn::Module {
    Tensor a = parameter("a", ones({4}));
    Tensor b = parameter("b", a);
  } tied;
  CHECK(names_of(tied.named_parameters()) == Names{"a"});
  CHECK(tied.parameter_count() == 4);
  CHECK(names_of(tied.state_dict()) == Names{"a", "b"});
}

TEST_CASE("nn: names must be new and plain") {
  struct Twice : nn::Module {
    Leaf a{child("a")};
    Tensor again = parameter("a", ones({1}));
  };
  CHECK(error_of([] { Twice module; }) == "parameter: name must be new in its module, got a twice");
  struct Children : nn::Module {
    Leaf a{child("a")};
    Leaf b{child("a")};
  };
  CHECK(error_of([] { Children module; }) == "child: name must be new in its module, got a twice");
  struct Dotted : nn::Module {
    Leaf a{child("a.b")};
  };
  CHECK(error_of([] { Dotted module; }) ==
        "child: name must not be empty or have a dot, got \"a.b\"");
  struct Empty : nn::Module {
    Tensor a = buffer("", ones({1}));
  };
  CHECK(error_of([] { Empty module; }) == "buffer: name must not be empty or have a dot, got \"\"");
}

TEST_CASE("nn: a child may go before its parent, and the parent before its child") {
  struct Holder : nn::Module {
    std::optional<Leaf> maybe;
    Leaf always{child("always")};
    void fill() { maybe.emplace(child("maybe")); }
  };
  auto holder = std::make_unique<Holder>();
  holder->fill();
  CHECK(names_of(holder->named_children()) == Names{"always", "maybe"});
  holder->maybe.reset();
  CHECK(names_of(holder->named_children()) == Names{"always"});
  holder->fill();  // the name is free again
  CHECK(holder->parameters().size() == 2);

  struct Open : nn::Module {
    nn::Child place() { return child("outside"); }
  };
  auto parent = std::make_unique<Open>();
  Leaf outside(parent->place());
  CHECK(parent->parameters().size() == 1);
  parent.reset();
  CHECK(outside.parameters().size() == 1);
}

TEST_CASE("nn: a failed child leaves its parent whole") {
  struct Bad : nn::Module {
    explicit Bad(const nn::Child& place) : Module(place) { fail("bad: always"); }
  };
  struct Holder : nn::Module {
    std::unique_ptr<Bad> bad;
    void fill() { bad = std::make_unique<Bad>(child("bad")); }
  } holder;
  CHECK(error_of([&] { holder.fill(); }) == "bad: always");
  CHECK(holder.named_children().empty());
}

TEST_CASE("nn: a state dict aliases and loads") {
  Root from, to;
  uniform_(from.branch.right.weight, 5, 6);
  raw::fill_(from.last.count, 7);
  const nn::StateDict dict = from.state_dict();
  CHECK(dict.at("branch.right.weight").raw_data() == from.branch.right.weight.raw_data());
  CHECK_FALSE(requires_grad(dict.at("branch.right.weight")));
  const nn::LoadReport report = to.load_state_dict(dict);
  CHECK((report.missing.empty() && report.unexpected.empty() && report.mismatched.empty()));
  CHECK(values_of(to.branch.right.weight) == values_of(from.branch.right.weight));
  CHECK(to.last.count.item<int64_t>() == 7);
  CHECK(requires_grad(to.branch.right.weight));
  // From a map, as a file gives it, and in another floating dtype.
  std::map<std::string, Tensor> map(dict.begin(), dict.end());
  map["branch.scale"] = full({1}, 0.5, {DType::f64});
  to.load_state_dict(map);
  CHECK(to.branch.scale.item() == 0.5);
  CHECK(to.branch.scale.dtype() == DType::f32);
}

TEST_CASE("nn: loading names every wrong key and changes nothing") {
  Root root;
  const auto before = values_of(root.last.weight);
  nn::StateDict dict;
  for (const auto& [name, tensor] : root.state_dict()) {
    if (name == "running" || name == "branch.left.count") continue;
    if (name == "branch.right.weight")
      dict.insert(name, zeros({3, 1}));
    else if (name == "last.count")
      dict.insert(name, zeros({}));
    else
      dict.insert(name, full(tensor.shape(), 9, {tensor.dtype()}));
  }
  dict.insert("head.weight", zeros({1}));
  dict.insert("head.bias", zeros({1}));
  CHECK(error_of([&] { root.load_state_dict(dict); }) ==
        "load_state_dict: keys must be the module's, got missing running, branch.left.count; "
        "unexpected head.weight, head.bias; "
        "mismatched branch.right.weight (f32 [3] in the module, f32 [3, 1] in the dict), "
        "last.count (i64 [] in the module, f32 [] in the dict)");
  CHECK(values_of(root.last.weight) == before);

  const nn::LoadReport report = root.load_state_dict(dict, {.strict = false});
  CHECK(report.missing == Names{"running", "branch.left.count"});
  CHECK(report.unexpected == Names{"head.weight", "head.bias"});
  REQUIRE(report.mismatched.size() == 2);
  CHECK(values_of(root.last.weight) == std::vector<double>(2, 9.0));
  CHECK(values_of(root.branch.right.weight) == std::vector<double>(3, 1.0));
}

TEST_CASE("nn: one wrong key makes a short error") {
  Leaf leaf;
  CHECK(error_of([&] {
          leaf.load_state_dict({{"weight", ones({2})}});
        }) == "load_state_dict: keys must be the module's, got missing count");
  nn::StateDict dict = leaf.state_dict();
  CHECK(error_of([&] { dict.insert("count", ones({1})); }) ==
        "state_dict: names must be unique, got count twice");
  CHECK(error_of([&] { dict.at("nothing"); }) ==
        "state_dict: name must be one of the 2 entries, got nothing");
}

TEST_CASE("nn: loading is a write that backward notices") {
  Leaf leaf;
  const uint32_t version = leaf.weight.version();
  leaf.load_state_dict(leaf.state_dict());
  CHECK(leaf.weight.version() > version);
}

TEST_CASE("nn: to the device it is on changes nothing") {
  Root root;
  const void* const address = root.last.weight.raw_data();
  root.to(kCPU);
  CHECK(root.last.weight.raw_data() == address);
}

TEST_CASE("nn: to another device brings a convolution's weight and gradient to its layout") {
  if (has_backend(DeviceType::cuda)) return;
  const test::LockedDevice device;
  manual_seed(4);
  nn::Conv2d conv(3, 4, {2, 5});
  const Shape here = conv.weight.strides();
  const auto values = values_of(conv.weight);
  const Tensor slope = randn(conv.weight.shape());
  set_grad(conv.weight, slope);
  conv.to(test::kLocked);
  CHECK(conv.weight.device() == test::kLocked);
  CHECK(conv.weight.strides() == Shape{2 * 5 * 3, 1, 5 * 3, 3});  // [O, KH, KW, I]
  CHECK(grad(conv.weight).strides() == conv.weight.strides());
  CHECK(values_of(raw::to(conv.weight, DType::f32, kCPU)) == values);
  CHECK(values_of(raw::to(grad(conv.weight), DType::f32, kCPU)) == values_of(slope));

  nn::Conv2d other(3, 4, {2, 5});
  conv.load_state_dict(other.state_dict());
  CHECK(values_of(raw::to(conv.weight, DType::f32, kCPU)) == values_of(other.weight));
  conv.to(kCPU);
  CHECK(conv.weight.strides() == here);
  CHECK(grad(conv.weight).strides() == here);
  CHECK(values_of(conv.weight) == values_of(other.weight));
  CHECK(values_of(grad(conv.weight)) == values_of(slope));
}

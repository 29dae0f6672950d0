// Convolution plans on disk: what the next process finds, and what it does not trust.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cairn/kernels/conv.h"
#include "cairn/kernels/cuda/dnn_plan_store.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/cuda/emulator/fake_dnn.h"

using namespace cairn;
using kernels::cuda::PlanChoice;
using kernels::cuda::PlanStore;
namespace fs = std::filesystem;

namespace {

const Device kGpu(DeviceType::cuda, 0);

// A cache folder of the test's own.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("cairn_plans_" + std::to_string(getpid()))) {
    fs::remove_all(path_);
    setenv("XDG_CACHE_HOME", path_.c_str(), 1);
  }
  ~Folder() {
    setenv("XDG_CACHE_HOME", "/dev/null", 1);
    fs::remove_all(path_);
    emulator::set_dnn_version(91900);
    cuda::settings().deterministic = false;
    kernels::cuda::set_dnn_api(&emulator::fake_dnn());
  }
  fs::path plans() const { return path_ / "cairn" / "plans"; }
  std::vector<fs::path> files() const {
    std::vector<fs::path> found;
    if (fs::exists(plans()))
      for (const auto& entry : fs::directory_iterator(plans())) found.push_back(entry.path());
    return found;
  }

 private:
  fs::path path_;
};

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}
void write(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

// One convolution in a process that starts without plans; how often it asked for engines.
int64_t searches(int64_t channels = 3) {
  kernels::cuda::set_dnn_api(&emulator::fake_dnn());
  const int64_t before = emulator::dnn_log().heuristics;
  const Tensor x = zeros({1, channels, 4, 4}, {DType::f32, kGpu});
  const Shape shape{2, channels, 3, 3};
  const Tensor w = zeros(shape, {DType::f32, kGpu});
  const Tensor y = empty_channels_last({1, 2, 2, 2}, {DType::f32, kGpu});
  kernels::conv2d_fwd(kGpu, y, raw::channels_last(x), raw::channels_last(w), Tensor(),
                      kernels::ConvParams{});
  return emulator::dnn_log().heuristics - before;
}

}  // namespace

TEST_CASE("cuda: a second process finds the plan that the first one chose") {
  const Folder folder;
  cuda::settings().deterministic = true;  // the engine with a knob
  CHECK(searches() == 1);
  REQUIRE(folder.files().size() == 1);
  const std::string text = read(folder.files()[0]);
  CHECK(text.find("cairn plan 1\nemulated on the host; cuDNN 91900; fwd f32 nhwc 1x3x4x4 filter "
                  "2x3x3x3 stride 1x1 pad 0x0 dilation 1x1 groups 1 align 16 tf32 deterministic\n"
                  "engine 10\nknob 2 3\nsum ") == 0);
  CHECK(searches() == 0);
  CHECK(emulator::dnn_log().last_engine == emulator::kTensorEngine);
  CHECK(searches(4) == 1);
  CHECK(folder.files().size() == 2);
}

TEST_CASE("cuda: a damaged or foreign plan is ignored and written anew") {
  const Folder folder;
  cuda::settings().deterministic = true;
  CHECK(searches() == 1);
  const fs::path file = folder.files().at(0);
  const std::string good = read(file);
  std::string flipped = good;
  flipped[flipped.find("engine 10") + 8] = '1';
  for (const std::string& bad : {std::string(), good.substr(0, good.size() / 2), flipped,
                                 std::string("something else\n"), good + "more"}) {
    write(file, bad);
    CHECK(searches() == 1);
    CHECK(read(file) == good);
  }
  // Whole, but what it names does not exist, or may not be used.
  const PlanStore store(folder.plans());
  const std::string key = good.substr(13, good.find("\nengine") - 13);
  CHECK(store.file_of(key) == file);
  for (const PlanChoice& choice :
       {PlanChoice{99, {}}, PlanChoice{10, {{2, 1000}}}, PlanChoice{10, {{7, 1}}},
        PlanChoice{emulator::kHugeEngine, {}}, PlanChoice{emulator::kChanceEngine, {}}}) {
    store.save(key, choice);
    CHECK(store.load(key) == choice);
    CHECK(searches() == 1);
    CHECK(read(file) == good);
  }
  // Another problem's plan under this one's name.
  CHECK(searches(4) == 1);
  for (const fs::path& other : folder.files())
    if (other != file) write(file, read(other));
  CHECK(searches() == 1);
  CHECK(read(file) == good);
}

TEST_CASE("cuda: another cuDNN has plans of its own") {
  const Folder folder;
  CHECK(searches() == 1);
  emulator::set_dnn_version(92000);
  CHECK(searches() == 1);
  CHECK(folder.files().size() == 2);
  emulator::set_dnn_version(91900);
  CHECK(searches() == 0);
}

TEST_CASE("cuda: a place that cannot be written to keeps nothing and troubles nobody") {
  const PlanStore store(fs::path("/dev/null/plans"));
  store.save("key", {1, {}});
  CHECK_FALSE(store.load("key").has_value());
  const PlanStore nowhere{fs::path()};
  nowhere.save("key", {1, {}});
  CHECK_FALSE(nowhere.load("key").has_value());
}

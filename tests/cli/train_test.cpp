// The training program behind `./run train` from outside: files, exit status, one sentence for each
// mistake. It trains one step on four real images, so the data set must be installed.
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/temp_folder.h"

using cairn::test::read_bytes;
using cairn::test::TempFolder;
using nlohmann::json;

namespace {

struct Outcome {
  int status = -1;
  std::string out;
  std::string err;
};

Outcome train(const std::string& arguments) {
  TempFolder folder;
  const std::string command = std::string("'") + CAIRN_BIN_DIR + "/fashion_mnist' " + arguments +
                              " >'" + folder.path("out") + "' 2>'" + folder.path("err") +
                              "' </dev/null";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_bytes(folder.path("out")),
          read_bytes(folder.path("err"))};
}

// The mistake's last line on standard error, after any progress.
std::string last_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

}  // namespace

TEST_CASE("cli: train with two workers is one run with one result") {
  TempFolder folder;
  const std::string output = folder.path("run");
  const Outcome r = train("--workers 2 --max-steps 2 --batch-size 2 --output '" + output + "'");
  INFO(r.err);
  REQUIRE(r.status == 0);
  CHECK(r.out.find("test accuracy: 0.") == 0);  // once, from rank 0
  const json result = json::parse(read_bytes(output + "/result.json"));
  CHECK(result["world_size"] == 2);
  CHECK(result["steps"] == 2);
  CHECK(std::filesystem::exists(output + "/checkpoints/last.ckpt"));
  CHECK(!std::filesystem::exists(output + "/checkpoints/last-v1.ckpt"));

  // What a worker cannot do is the error of the run.
  const Outcome wrong =
      train("--workers 2 --max-steps 1 --output '" + output + "/result.json/below'");
  CHECK(wrong.status == 1);
  CHECK(wrong.err.find("train: --output must be a folder that can be made") != std::string::npos);
  CHECK(last_line(train("--workers 0").err) == "train: --workers must be 1 to 1024, got 0");
}

TEST_CASE("cli: train writes its result, metrics and checkpoints, and resumes") {
  TempFolder folder;
  const std::string output = folder.path("run");
  const std::string trace = folder.path("trace.json");
  const Outcome r = train("--max-steps 2 --batch-size 4 --threads 2 --output '" + output +
                          "' --profile '" + trace + "'");
  INFO(r.err);
  REQUIRE(r.status == 0);
  for (const char* text : {"GFLOP/s", "\nconv2d_fwd ", "\ntraining_step ", "\ntest accuracy: 0."})
    CHECK(r.out.find(text) != std::string::npos);
  const json events = json::parse(read_bytes(trace)).at("traceEvents");
  CHECK(std::count_if(events.begin(), events.end(),
                      [](const json& e) { return e.at("name") == "training_step"; }) == 2);
  CHECK(r.err.find('\r') == std::string::npos);  // plain lines where there is no terminal

  const json result = json::parse(read_bytes(output + "/result.json"));
  for (const char* key :
       {"test_accuracy", "train_loss", "epochs", "steps", "seconds", "images_per_second",
        "step_ms_median", "peak_memory_bytes", "options", "versions"})
    CHECK(result.contains(key));
  CHECK(result["steps"] == 2);
  CHECK(result["options"]["batch_size"] == 4);
  CHECK(result["peak_memory_bytes"] > 44'701'480);  // the weights alone
  CHECK(std::filesystem::exists(output + "/metrics.csv"));
  CHECK(std::filesystem::exists(output + "/checkpoints/last.ckpt"));

  // Three steps in one go and two plus one are the same run.
  const std::string straight = folder.path("straight");
  REQUIRE(train("--max-steps 3 --batch-size 4 --output '" + straight + "'").status == 0);
  REQUIRE(train("--max-steps 3 --batch-size 4 --resume --output '" + output + "'").status == 0);
  const json once = json::parse(read_bytes(straight + "/result.json"));
  const json resumed = json::parse(read_bytes(output + "/result.json"));
  CHECK(resumed["steps"] == 3);
  CHECK(resumed["test_accuracy"] == once["test_accuracy"]);
  CHECK(read_bytes(straight + "/metrics.csv") == read_bytes(output + "/metrics.csv"));

  // A checkpoint that cannot be used leaves the earlier result alone.
  std::ofstream(output + "/checkpoints/last.ckpt", std::ios::trunc) << "no checkpoint";
  const Outcome damaged = train("--max-steps 4 --resume --output '" + output + "'");
  CHECK(damaged.status == 1);
  CHECK(std::filesystem::exists(output + "/result.json"));
}

TEST_CASE("cli: train says what is wrong in one sentence, and starts nothing") {
  TempFolder folder;
  const std::string output = folder.path("run");
  std::ofstream(folder.path("file")) << "x";
  const std::string data = folder.path("data");
  std::filesystem::create_directories(data);
  for (const char* name : {"train-images-idx3-ubyte", "train-labels-idx1-ubyte",
                           "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"})
    std::ofstream(data + "/" + name) << "not IDX at all";
  const struct {
    std::string arguments;
    int status;
    std::string text;  // part of the sentence
  } mistakes[] = {
      {"--learning-rate 1", 2, "train: "},
      {"--max-steps many", 2, "train: "},
      {"--seed -1", 2, "train: "},
      {"--lr nan", 1, "train: --lr must be finite and not negative, got nan"},
      {"--lr -1", 1, "train: --lr must be finite and not negative, got -1"},
      {"--batch-size 0", 1, "train: --batch-size must be 1 to the 60000 images there are, got 0"},
      {"--max-epochs -1", 1, "train: --max-epochs must be at least 0, got -1"},
      {"--threads -1", 1, "train: --threads must be 0 to 1024, got -1"},
      {"--accelerator tpu", 1, "Trainer: accelerator must be auto, cpu or gpu, got tpu"},
      {"--threads 100000000", 1, "train: --threads must be 0 to 1024, got 100000000"},
      {"--data-root '" + data + "'", 1, "train-images-idx3-ubyte"},
  };
  for (const auto& m : mistakes) {
    const Outcome r = train(m.arguments + " --output '" + output + "'");
    INFO(m.arguments << ": " << r.err);
    CHECK(r.status == m.status);
    CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
    CHECK(r.err.find(m.text) != std::string::npos);
    CHECK(!std::filesystem::exists(output + "/result.json"));
  }
  const Outcome nowhere = train("--profile '" + folder.path("no/such/file") + "' --output '" +
                                folder.path("other") + "'");
  CHECK(nowhere.status == 1);
  CHECK(nowhere.err.find("train: '" + folder.path("no/such/file")) == 0);
  CHECK(std::count(nowhere.err.begin(), nowhere.err.end(), '\n') == 1);
  const Outcome r = train("--output '" + folder.path("file") + "/below'");
  CHECK(r.status == 1);
  CHECK(last_line(r.err).find("train: --output must be a folder that can be made") == 0);
}

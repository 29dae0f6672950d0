// The `cairn` program from outside: exit status, and one sentence for each mistake.
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>

#include "check/op_table.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"

using cairn::test::read_bytes;
using cairn::test::TempFolder;

namespace {

struct Outcome {
  int status = -1;
  std::string out;
  std::string err;
};

Outcome cairn_program(const std::string& arguments) {
  TempFolder folder;
  const std::string command = std::string("'") + CAIRN_BIN_DIR + "/cairn' " + arguments + " >'" +
                              folder.path("out") + "' 2>'" + folder.path("err") + "' </dev/null";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_bytes(folder.path("out")),
          read_bytes(folder.path("err"))};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

int64_t lines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

}  // namespace

TEST_CASE("cli: help and version are on standard output") {
  for (const char* arguments : {"--help", "info --help", "doctor --help", "check --help"}) {
    const Outcome r = cairn_program(arguments);
    INFO(arguments);
    CHECK(r.status == 0);
    CHECK(contains(r.out, "Usage: cairn"));
    CHECK(r.err.empty());
  }
  CHECK(cairn_program("--version").out == "0.1.0\n");
}

TEST_CASE("cli: mistakes in the command line end with status 2 and one line") {
  for (const char* arguments :
       {"", "dance", "check --dtype f16", "check --device tpu", "check no_such_op", "info extra",
        "check relu --speed", "check relu --dtype i64"}) {
    const Outcome r = cairn_program(arguments);
    INFO(arguments << ": " << r.err);
    CHECK(r.status == 2);
    CHECK(r.out.empty());
    CHECK(lines(r.err) == 1);
    CHECK(r.err.rfind("cairn: ", 0) == 0);
  }
  CHECK(cairn_program("check --dtype f16").err ==
        "cairn: check: dtype: name must be one of f64 f32 bf16 i64 i32 u8 bool, got 'f16'\n");
  CHECK(cairn_program("check --device tpu").err ==
        "cairn: check: device: name must be cpu, cuda or cuda:N, got 'tpu'\n");
}

TEST_CASE("cli: an unknown operator is answered with the nearest names") {
  const Outcome r = cairn_program("check conv2");
  CHECK(contains(r.err, "got 'conv2'; the nearest are 'conv2d'"));
}

TEST_CASE("cli: info and doctor print plain lines") {
  const Outcome info = cairn_program("info");
  CHECK(info.status == 0);
  CHECK(contains(info.out, "version     0.1.0\n"));
  CHECK(contains(info.out, "compiler    "));
  const Outcome doctor = cairn_program("doctor");
  CHECK(doctor.status == 0);
  for (const char* word : {"processor", "features", "kernels", "threads", "memory", "data", "GPU"})
    CHECK(contains(doctor.out, std::string("\n") + word + " "));
  CHECK_FALSE(contains(doctor.out, "\x1b"));
  CHECK(doctor.err.empty());
}

TEST_CASE("cli: check prints one row per operator and dtype") {
  const Outcome list = cairn_program("check --list");
  CHECK(list.status == 0);
  CHECK(static_cast<size_t>(lines(list.out)) == cairn::check_table::entries().size());

  const Outcome r = cairn_program("check relu --dtype f64,f32");
  INFO(r.out << r.err);
  CHECK(r.status == 0);
  CHECK(contains(r.out, "op "));
  CHECK(contains(r.out, "relu "));
  CHECK(contains(r.out, " f64 "));
  CHECK(contains(r.out, " f32 "));
  CHECK(contains(r.out, "2 of 2 rows passed\n"));
}

TEST_CASE("cli: a device that is not there is an error with status 1") {
  if (cairn::has_backend(cairn::DeviceType::cuda)) return;
  const Outcome r = cairn_program("check relu --device cuda");
  CHECK(r.status == 1);
  CHECK(lines(r.err) == 1);
  CHECK(contains(r.err, "cuda"));
}

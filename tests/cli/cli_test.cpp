// The `cairn` program from outside: exit status, and one sentence for each mistake.
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>

#include "cairn/tensor/cuda.h"
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

// `environment`: "NAME=value …", before the command.
Outcome cairn_program(const std::string& arguments, const std::string& environment = "") {
  TempFolder folder;
  const std::string command = environment + " '" + CAIRN_BIN_DIR + "/cairn' " + arguments + " >'" +
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
  for (const char* arguments :
       {"--help", "info --help", "doctor --help", "check --help", "launch --help"}) {
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
       {"", "dance", "check relu --target mmx", "check --dtype f8", "check --device tpu",
        "check no_such_op", "info extra", "check relu --speed", "check relu --dtype i64", "launch",
        "launch --workers 0 -- true", "launch --workers x -- true", "launch --hosts '' -- true",
        "launch --workers 2 ls -l"}) {
    const Outcome r = cairn_program(arguments);
    INFO(arguments << ": " << r.err);
    CHECK(r.status == 2);
    CHECK(r.out.empty());
    CHECK(lines(r.err) == 1);
    CHECK(r.err.rfind("cairn: ", 0) == 0);
  }
  CHECK(cairn_program("check --dtype f8").err ==
        "cairn: check: dtype: name must be one of f64 f32 bf16 f16 i64 i32 u8 bool, got 'f8'\n");
  CHECK(cairn_program("check --device tpu").err ==
        "cairn: check: device: name must be cpu, cuda or cuda:N, got 'tpu'\n");
}

TEST_CASE("cli: launch says where the program's options go, and asks which host this is") {
  CHECK(cairn_program("launch --workers 2 ls -l").err ==
        "cairn: The following argument was not expected: -l; the program and its arguments come "
        "after --, as in: cairn launch --workers 2 -- ls -l\n");
  CHECK_FALSE(contains(cairn_program("info extra").err, "--"));
  CHECK(contains(cairn_program("launch --hosts '' --rank 0 -- true").err,
                 "must be a list of hosts, got nothing; is a variable not set?"));
  const Outcome r = cairn_program("launch --hosts a,b -- true", "CAIRN_SECRET=x");
  CHECK(r.status == 1);
  CHECK(r.err.rfind("cairn: launch: rank of this host must be given where there are 2 hosts", 0) ==
        0);
}

TEST_CASE("cli: launch fails where its output is lost on a full disk, and says so") {
  const std::string command = std::string("'") + CAIRN_BIN_DIR + "/cairn' launch -- echo line";
  TempFolder folder;
  const int status = std::system((command + " >/dev/full 2>'" + folder.path("err") + "'").c_str());
  CHECK(WEXITSTATUS(status) == 1);
  CHECK(read_bytes(folder.path("err")) ==
        "cairn launch: standard output must take what workers write, got: No space left on "
        "device; the rest is lost\n");
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
  CHECK(contains(info.out, cairn::cuda::built() ? "\nCUDA        built for "
                                                : "\nCUDA        none in this build"));
  CHECK(contains(info.out, "\ndevices     cpu"));
  const Outcome doctor = cairn_program("doctor");
  CHECK(doctor.status == 0);
  for (const char* word : {"processor", "features", "kernels", "BLAS", "OpenBLAS", "threads",
                           "memory", "data", "CUDA", "GPU"})
    CHECK(contains(doctor.out, std::string("\n") + word + " "));
  CHECK_FALSE(contains(doctor.out, "\x1b"));
  CHECK(doctor.err.empty());
}

TEST_CASE("cli: doctor warns of an OpenBLAS that does not know the processor") {
  const Outcome r =
      cairn_program("doctor", std::string("LD_LIBRARY_PATH='") + CAIRN_OLD_OPENBLAS + "'");
  INFO(r.out << r.err);
  CHECK(r.status == 0);
  CHECK(contains(r.out,
                 "OpenBLAS 0.3.21 DYNAMIC_ARCH Prescott MAX_THREADS=64, kernels for Prescott\n"));
  const bool better = contains(r.out, " avx2");
  CHECK(contains(r.out, "\nwarning ") == better);
  CHECK(contains(r.out, "OPENBLAS_CORETYPE=") == better);
}

TEST_CASE("cli: a CAIRN_NUM_THREADS that is no number of threads is an error") {
  for (const char* value : {"abc", "0", "-1", "2x", "1025", "99999999999", ""}) {
    const std::string environment = std::string("CAIRN_NUM_THREADS='") + value + "'";
    const std::string text =
        std::string("threads: CAIRN_NUM_THREADS must be 1 to 1024, got '") + value + "'\n";
    INFO(value);
    const Outcome doctor = cairn_program("doctor", environment);
    CHECK(doctor.status == 1);
    CHECK(contains(doctor.out, "\nthreads     " + text));
    CHECK(contains(doctor.out, "\nGPU "));  // the rest is there too
    const Outcome check = cairn_program("check relu", environment);
    CHECK(check.status == 1);
    CHECK(check.err == "cairn: " + text);
  }
  CHECK(contains(cairn_program("doctor", "CAIRN_NUM_THREADS=3").out, "\nthreads     3 of "));
}

TEST_CASE("cli: check runs on the instruction set it is told") {
  const std::string doctor = cairn_program("doctor").out;
  int checked = 0;
  for (const char* name : {"AVX-512", "AVX2", "SSE2", "SCALAR", "EMU128", "NEON"}) {
    if (!contains(doctor, name)) continue;
    const Outcome r =
        cairn_program(std::string("check relu matmul softmax --dtype f32 --target ") + name);
    INFO(name << r.out << r.err);
    if (contains(r.err, "set_target: name must be one of ")) continue;  // compiled, not usable here
    ++checked;
    CHECK(r.status == 0);
    CHECK(contains(r.out, std::string("kernels: ") + name + "\n"));
    CHECK(contains(r.out, "3 of 3 rows passed\n"));
  }
  CHECK(checked >= 1);
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
  if (cairn::cuda::device_count() > 0) return;
  const Outcome r = cairn_program("check relu --device cuda");
  CHECK(r.status == 1);
  CHECK(r.err == "cairn: check: device must be cpu without a usable GPU, got cuda; " +
                     cairn::cuda::unavailable() + "\n");
}

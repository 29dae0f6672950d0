// Rules about the source text: the order of folders, what public headers may include, no output.
#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "tests/catch.h"
#include "tests/temp_folder.h"

namespace fs = std::filesystem;
using cairn::test::read_bytes;

namespace {

// What each folder may include besides the standard library. Adding a folder means adding a row.
const std::map<std::string, std::set<std::string>> kMayUse = {
    {"tensor", {"tensor"}},
    {"kernels", {"tensor", "kernels"}},
    {"autograd", {"tensor", "kernels", "autograd"}},
    {"nn", {"tensor", "autograd", "nn"}},
    {"optim", {"tensor", "kernels", "autograd", "optim"}},
    {"data", {"tensor", "data"}},
    {"dist", {"tensor", "kernels", "autograd", "dist"}},
    {"trainer", {"tensor", "kernels", "autograd", "nn", "optim", "data", "dist", "trainer"}},
};

// Folders whose headers are for the library alone, so that they may include other libraries'
// headers.
const std::vector<std::string> kPrivateFolders = {"cairn/kernels/cpu/", "cairn/kernels/cuda/",
                                                  "cairn/tensor/cuda/", "cairn/dist/cuda/"};

// How the names of other libraries' headers start.
const std::vector<std::string> kVendors = {"hwy/",   "nlohmann/", "curl/",    "CLI/",
                                           "Eigen/", "zlib.h",    "xxhash.h", "sodium",
                                           "cuda",   "cudnn",     "cublas",   "nccl"};

// What puts text on the terminal or ends the process; calls with their parenthesis.
const std::vector<std::string> kOutput = {
    "std::cout", "std::cerr", "std::clog", "printf(", "fprintf(", "vfprintf(",   "puts(",  "fputs(",
    "putchar(",  "perror(",   "abort()",   "exit(",   "_exit(",   "quick_exit(", "assert("};

bool starts_with_any(const std::string& text, const std::vector<std::string>& starts) {
  return std::any_of(starts.begin(), starts.end(),
                     [&](const std::string& start) { return text.rfind(start, 0) == 0; });
}

struct Source {
  std::string path;  // from the root: "cairn/tensor/shape.h"
  std::string text;
};

std::vector<Source> sources_below(const std::string& folder) {
  const fs::path root = CAIRN_SOURCE_DIR;
  std::vector<Source> out;
  for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
    const auto extension = entry.path().extension();
    if (extension == ".h" || extension == ".cpp" || extension == ".cu" || extension == ".cuh")
      out.push_back({entry.path().lexically_relative(root).generic_string(),
                     read_bytes(entry.path().string())});
  }
  std::sort(out.begin(), out.end(),
            [](const Source& a, const Source& b) { return a.path < b.path; });
  return out;
}

bool is_private(const std::string& path) { return starts_with_any(path, kPrivateFolders); }

// The included names with their quotes or brackets.
std::vector<std::string> includes_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::string tight;
    for (char c : line)
      if (c != ' ' && c != '\t') tight += c;
    const std::string directive = "#include";
    if (tight.rfind(directive, 0) != 0 || tight.size() == directive.size()) continue;
    const std::string rest = tight.substr(directive.size());
    const size_t end = rest.find(rest[0] == '<' ? '>' : '"', 1);
    if (end != std::string::npos) out.push_back(rest.substr(0, end + 1));
  }
  return out;
}

// The folder of "cairn/<folder>/…"; "" for a file right below cairn/, the umbrella header.
std::string folder_of(const std::string& path) {
  const size_t start = std::string("cairn/").size();
  const size_t slash = path.find('/', start);
  return slash == std::string::npos ? "" : path.substr(start, slash - start);
}

// One sentence for every include of this file that breaks a rule.
std::vector<std::string> include_faults(const Source& source) {
  std::vector<std::string> faults;
  const auto fault = [&](const std::string& include, const std::string& why) {
    faults.push_back(source.path + " includes " + include + ": " + why);
  };
  const std::string folder = folder_of(source.path);
  if (!folder.empty() && kMayUse.count(folder) == 0)
    faults.push_back(source.path + " lies in a folder that has no row in the table");
  const bool header = source.path.size() > 2 && source.path.substr(source.path.size() - 2) == ".h";
  for (const std::string& quoted : includes_of(source.text)) {
    const std::string name = quoted.substr(1, quoted.size() - 2);
    if (quoted[0] == '"' && name.rfind("cairn/", 0) != 0)
      fault(quoted, "a path of this repository must start with cairn/");
    if (name.rfind("cairn/", 0) == 0 && !folder.empty() && kMayUse.count(folder) != 0) {
      const std::string target = folder_of(name);
      if (kMayUse.at(folder).count(target) == 0)
        fault(quoted, folder + "/ may not use " + (target.empty() ? "the umbrella" : target + "/"));
    }
    if (header && !is_private(source.path)) {
      if (starts_with_any(name, kVendors)) fault(quoted, "a public header shows no other library");
      if (name == "iostream" || name == "regex") fault(quoted, "a public header must stay light");
    }
  }
  return faults;
}

// The text without // comments and the contents of string literals.
std::string code_of(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\'' && i + 2 < text.size() && text[i + 2] == '\'') {
      i += 2;  // the character '"' opens no string
    } else if (text[i] == '"') {
      for (++i; i < text.size() && text[i] != '"' && text[i] != '\n'; ++i)
        if (text[i] == '\\') ++i;
      out += "\"\"";
    } else if (text.compare(i, 2, "//") == 0) {
      i = std::min(text.find('\n', i), text.size()) - 1;
    } else {
      out += text[i];
    }
  }
  return out;
}

bool prints_or_aborts(const std::string& text) {
  const std::string code = code_of(text);
  for (const std::string& word : kOutput)
    for (size_t at = code.find(word); at != std::string::npos; at = code.find(word, at + 1)) {
      const auto before = static_cast<unsigned char>(at == 0 ? ' ' : code[at - 1]);
      // snprintf, static_assert and names that end alike are other words.
      if (std::isalnum(before) == 0 && before != '_') return true;
    }
  return false;
}

}  // namespace

TEST_CASE("structure: folders include only what lies to their left") {
  const auto sources = sources_below("cairn");
  REQUIRE(sources.size() > 50);
  for (const auto& source : sources)
    for (const auto& fault : include_faults(source)) FAIL_CHECK(fault);
}

TEST_CASE("structure: the include rules find what breaks them") {
  const auto faults = [](const std::string& path, const std::string& text) {
    return include_faults({path, text}).size();
  };
  CHECK(faults("cairn/tensor/a.cpp", "#include \"cairn/tensor/b.h\"\n#include <vector>\n") == 0);
  CHECK(faults("cairn/tensor/a.cpp", "#include \"cairn/nn/module.h\"\n") == 1);
  CHECK(faults("cairn/data/a.cpp", "  #  include <cairn/autograd/engine.h>\n") == 1);
  CHECK(faults("cairn/nn/a.h", "#include \"module.h\"\n") == 1);
  CHECK(faults("cairn/nn/a.h", "#include <nlohmann/json.hpp>\n#include <iostream>\n") == 2);
  CHECK(faults("cairn/nn/a.cpp", "#include <nlohmann/json.hpp>\n") == 0);
  CHECK(faults("cairn/kernels/cpu/a.h", "#include <hwy/highway.h>\n") == 0);
  CHECK(faults("cairn/elsewhere/a.cpp", "") == 1);
  CHECK(faults("cairn/tensor/a.cpp", "#include \"cairn/cairn.h\"\n") == 1);
  CHECK(faults("cairn/cairn.h", "#include \"cairn/trainer/trainer.h\"\n") == 0);
}

TEST_CASE("structure: the library never prints and never aborts") {
  CHECK(prints_or_aborts("void f() { std::cout << 1; }"));
  CHECK(prints_or_aborts("  printf(\"x\");"));
  CHECK(prints_or_aborts("std::abort();"));
  CHECK_FALSE(prints_or_aborts("group->abort(error.what());"));  // that of a group
  CHECK_FALSE(prints_or_aborts("std::snprintf(buffer, 3, \"printf(\");  // std::cout"));
  for (const auto& source : sources_below("cairn")) {
    // The progress bar is the part whose work is to print; what the launcher forks must not return.
    const std::vector<std::string> may = {"callbacks/progress_bar.cpp", "dist/child.cpp",
                                          "dist/guard.cpp"};
    if (std::any_of(may.begin(), may.end(), [&](const std::string& part) {
          return source.path.find(part) != std::string::npos;
        }))
      continue;
    if (prints_or_aborts(source.text)) FAIL_CHECK(source.path + " prints or ends the process");
  }
}

TEST_CASE("structure: only the cuda folders ask whether there is CUDA") {
  const auto asks = [](const std::string& text) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
      if (line.rfind("#if", 0) == 0 && line.find("CUDA") != std::string::npos) return true;
    return false;
  };
  CHECK(asks("#ifdef CAIRN_HAS_CUDA\n"));
  CHECK(asks("int x;\n#if defined(__CUDACC__)\n"));
  for (const auto& source : sources_below("cairn"))
    if (source.path.find("/cuda/") == std::string::npos && asks(source.text))
      FAIL_CHECK(source.path + " compiles differently with CUDA");
}

TEST_CASE("structure: every file opens with what it is") {
  for (const char* folder : {"cairn", "check", "cli", "tests"})
    for (const auto& source : sources_below(folder))
      if (source.text.rfind("//", 0) != 0) FAIL_CHECK(source.path + " opens without a comment");
}

TEST_CASE("structure: headers are included once and sources stay short") {
  for (const auto& source : sources_below("cairn")) {
    if (source.path.substr(source.path.size() - 2) == ".h" &&
        source.text.find("#pragma once") == std::string::npos && !is_private(source.path))
      FAIL_CHECK(source.path + " has no #pragma once");
    // "About 500": past this, look for the seam.
    const auto lines = std::count(source.text.begin(), source.text.end(), '\n');
    if (lines > 650) FAIL_CHECK(source.path + " has " + std::to_string(lines) + " lines");
  }
}

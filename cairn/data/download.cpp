// libcurl into a temporary file, then rename. libcurl is loaded by the first download: programs
// that fetch nothing run without it and its two dozen libraries, and start faster. Invariant: see
// download.h.
#include "cairn/data/download.h"

#include <curl/curl.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>

#include "cairn/tensor/error.h"

namespace cairn::data {
namespace {

constexpr long kSlowestBytesPerSecond = 1024;
constexpr long kMaxRedirects = 5;

// The temporary file: closed and removed unless keep() renamed it.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path) : path_(path) {
    static std::atomic<int> counter{0};
    // Process and counter in the name let several processes load the same file at once.
    name_ = cat(path, ".tmp.", ::getpid(), ".", counter.fetch_add(1));
    fd_ = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    check(fd_ >= 0, "download: ", name_, " must be writable, got '", std::strerror(errno), "'");
  }
  ~TemporaryFile() {
    if (fd_ >= 0) ::close(fd_);
    if (!kept_) ::unlink(name_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& name() const { return name_; }

  bool write(const char* data, size_t count) {
    while (count > 0) {
      const ssize_t done = ::write(fd_, data, count);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) {
        error_ = errno;
        return false;
      }
      data += done;
      count -= static_cast<size_t>(done);
    }
    return true;
  }
  int error() const { return error_; }

  void sync() {
    check(::fsync(fd_) == 0, "download: ", name_, " must reach the disk, got '",
          std::strerror(errno), "'");
  }

  void keep() {
    check(::rename(name_.c_str(), path_.c_str()) == 0, "download: ", path_,
          " must be replaceable, got '", std::strerror(errno), "'");
    kept_ = true;
    // The new name itself survives a power cut only once the folder is synced too.
    const std::string folder = std::filesystem::path(path_).parent_path().string();
    const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    ::fsync(fd);
    ::close(fd);
  }

 private:
  std::string path_;
  std::string name_;
  int fd_ = -1;
  int error_ = 0;
  bool kept_ = false;
};

struct Sink {
  TemporaryFile& file;
  int64_t room;
  bool too_large = false;
};

size_t receive(char* data, size_t size, size_t count, void* user) {
  auto& sink = *static_cast<Sink*>(user);
  const size_t bytes = size * count;
  sink.too_large = static_cast<int64_t>(bytes) > sink.room;
  if (sink.too_large || !sink.file.write(data, bytes)) return 0;  // curl stops: CURLE_WRITE_ERROR
  sink.room -= static_cast<int64_t>(bytes);
  return bytes;
}

void check_arguments(const std::string& url, const DownloadOptions& options) {
  check(url.rfind("http://", 0) == 0 || url.rfind("https://", 0) == 0,
        "download: URL must begin with http:// or https://, got ", url);
  check(options.connect_timeout_s > 0 && options.connect_timeout_s <= 1e6 &&
            options.stall_timeout_s > 0 && options.stall_timeout_s <= 1e6,
        "download: timeouts must be above 0 and at most 10^6 s, got ", options.connect_timeout_s,
        " and ", options.stall_timeout_s);
}

// The functions of libcurl that are used.
class Library {
 public:
  Library() {
    // The second is the same library with another one for TLS.
    for (const char* name : {"libcurl.so.4", "libcurl-gnutls.so.4"})
      if (handle_ == nullptr) handle_ = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
    check(handle_ != nullptr, "download: libcurl.so.4 must be installed, got '", ::dlerror(), "'");
    find("curl_easy_init", easy_init);
    find("curl_easy_cleanup", easy_cleanup);
    find("curl_easy_setopt", setopt);
    find("curl_easy_perform", perform);
    find("curl_easy_getinfo", getinfo);
    find("curl_easy_strerror", strerror);
    decltype(&curl_global_init) global_init = nullptr;
    find("curl_global_init", global_init);
    global_init(CURL_GLOBAL_DEFAULT);
  }

  decltype(&curl_easy_init) easy_init = nullptr;
  decltype(&curl_easy_cleanup) easy_cleanup = nullptr;
  CURLcode (*setopt)(CURL*, CURLoption, ...) = nullptr;
  decltype(&curl_easy_perform) perform = nullptr;
  CURLcode (*getinfo)(CURL*, CURLINFO, ...) = nullptr;
  decltype(&curl_easy_strerror) strerror = nullptr;

 private:
  template <class F>
  void find(const char* name, F& function) {
    function = reinterpret_cast<F>(::dlsym(handle_, name));
    check(function != nullptr, "download: libcurl must have ", name, ", got none");
  }

  void* handle_ = nullptr;  // never closed
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

using Curl = std::unique_ptr<CURL, decltype(&curl_easy_cleanup)>;

Curl make_curl() {
  Curl curl(library().easy_init(), library().easy_cleanup);
  check(curl != nullptr, "download: libcurl must start, got no handle");
  return curl;
}

void configure(CURL* curl, const std::string& url, const DownloadOptions& options, Sink& sink,
               char* message) {
  const auto set = library().setopt;
  set(curl, CURLOPT_URL, url.c_str());
  set(curl, CURLOPT_ERRORBUFFER, message);
  set(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  set(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
  set(curl, CURLOPT_FOLLOWLOCATION, 1L);
  set(curl, CURLOPT_MAXREDIRS, kMaxRedirects);
  set(curl, CURLOPT_FAILONERROR, 1L);
  set(curl, CURLOPT_NOSIGNAL, 1L);  // signals and threads do not mix
  set(curl, CURLOPT_CONNECTTIMEOUT_MS,
      static_cast<long>(std::ceil(options.connect_timeout_s * 1000)));
  set(curl, CURLOPT_LOW_SPEED_LIMIT, kSlowestBytesPerSecond);
  set(curl, CURLOPT_LOW_SPEED_TIME, static_cast<long>(std::ceil(options.stall_timeout_s)));
  set(curl, CURLOPT_WRITEFUNCTION, &receive);
  set(curl, CURLOPT_WRITEDATA, &sink);
}

// One sentence for what went wrong.
[[noreturn]] void fail_transfer(CURL* curl, CURLcode code, const std::string& url,
                                const DownloadOptions& options, const Sink& sink,
                                const char* message) {
  long status = 0;
  library().getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  if (code == CURLE_HTTP_RETURNED_ERROR)
    throw CommError(cat("download: ", url, " must answer with HTTP status 200, got ", status));
  if (sink.too_large)
    throw CommError(
        cat("download: ", url, " must send at most ", options.max_bytes, " bytes, got more"));
  check(sink.file.error() == 0, "download: ", sink.file.name(), " must be writable, got '",
        std::strerror(sink.file.error()), "'");
  throw CommError(cat("download: ", url, " must send its whole content, got '",
                      message[0] != '\0' ? message : library().strerror(code), "'"));
}

}  // namespace

void download(const std::string& url, const std::string& path,
              const std::function<void(const std::string&)>& verify,
              const DownloadOptions& options) {
  check_arguments(url, options);
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code error;
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  check(!error, "download: folder ", folder.string(), " must be writable, got '", error.message(),
        "'");
  TemporaryFile file(path);
  Sink sink{file, options.max_bytes};
  const Curl curl = make_curl();
  char message[CURL_ERROR_SIZE] = "";
  configure(curl.get(), url, options, sink, message);
  const CURLcode code = library().perform(curl.get());
  if (code != CURLE_OK) fail_transfer(curl.get(), code, url, options, sink, message);
  if (verify) verify(file.name());
  file.sync();
  file.keep();
}

}  // namespace cairn::data

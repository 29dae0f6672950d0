// Downloads against a server on loopback: what arrives, what is refused, and that nothing half
// written stays.
#include "cairn/data/download.h"

#include <chrono>

#include "cairn/data/idx_set.h"
#include "tests/catch.h"
#include "tests/data/http_server.h"
#include "tests/data/support.h"

using namespace cairn;
using namespace cairn::test;

namespace {

// A proxy of the environment must not stand between the test and its own server.
const SetEnvironment no_proxy("no_proxy", "127.0.0.1");

std::string text_of(const Bytes& bytes) { return std::string(bytes.begin(), bytes.end()); }

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

HttpServer::Handler always(const std::string& answer) {
  return [answer](const std::string&, const HttpServer::Peer& peer) { peer.send(answer); };
}

// The text of the CommError that download() throws, with the folder checked to stay empty.
std::string failure(const std::string& url, const data::DownloadOptions& options = {}) {
  const TempFolder folder;
  std::string text = "no error";
  try {
    data::download(url, folder.file("f"), {}, options);
  } catch (const CommError& error) {
    text = error.what();
  }
  CHECK(folder.files().empty());
  return text;
}

const Bytes kImages = idx_bytes({7, 4, 4});
const Bytes kLabels = idx_bytes({7}, 10);

data::IdxSet small_set() {
  return {.op = "small",
          .title = "Small",
          .folder = "Small",
          .system_folders = {},
          .package = "dataset-small",
          .mirrors = {},
          .images = {.name = "images", .shape = {7, 4, 4}, .crc32 = crc_of(kImages)},
          .labels = {.name = "labels", .shape = {7}, .crc32 = crc_of(kLabels)}};
}

HttpServer::Handler small_set_server() {
  return [](const std::string& path, const HttpServer::Peer& peer) {
    if (path == "/images.gz")
      peer.send(http_answer(text_of(gzip(kImages))));
    else if (path == "/labels.gz")
      peer.send(http_answer(text_of(gzip(kLabels))));
    else
      peer.send(http_answer("no", "404 Not Found"));
  };
}

}  // namespace

TEST_CASE("data: download writes the content, makes folders and replaces an old file") {
  const std::string body(300000, 'x');
  const HttpServer server(always(http_answer(body)));
  const TempFolder folder;
  const std::string path = folder.file("a/b/f");
  write_file(path, {1, 2, 3});
  std::string seen;
  data::download(server.url() + "f", path, [&](const std::string& temporary) {
    seen = temporary;
    CHECK(text_of(read_file(temporary)) == body);
    CHECK(read_file(path) == Bytes{1, 2, 3});  // not yet replaced
  });
  CHECK(seen.find(path + ".tmp.") == 0);
  CHECK(text_of(read_file(path)) == body);
  CHECK(folder.files() == std::vector<std::string>{"a/b/f"});
  CHECK(server.requests() == std::vector<std::string>{"/f"});
}

TEST_CASE("data: download follows redirects to http only") {
  std::string to;
  const HttpServer server([&](const std::string& path, const HttpServer::Peer& peer) {
    if (path == "/new")
      peer.send(http_answer("moved here"));
    else
      peer.send("HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: " + to +
                "\r\n\r\n");
  });
  const TempFolder folder;
  to = server.url() + "new";
  data::download(server.url() + "old", folder.file("f"));
  CHECK(text_of(read_file(folder.file("f"))) == "moved here");
  to = "file:///etc/passwd";
  CHECK(failure(server.url() + "old").find("file") != std::string::npos);
  to = server.url() + "old";  // for ever
  CHECK(failure(server.url() + "old").find("must send its whole content") != std::string::npos);
}

TEST_CASE("data: download refuses wrong arguments") {
  const TempFolder folder;
  for (const char* url : {"ftp://127.0.0.1/f", "file:///etc/passwd", "f", ""})
    CHECK(error_of([&] { data::download(url, folder.file("f")); }) ==
          cat("download: URL must begin with http:// or https://, got ", url));
  CHECK(error_of([&] {
          data::download("http://127.0.0.1/", folder.file("f"), {}, {.connect_timeout_s = 0});
        }) == "download: timeouts must be above 0 and at most 10^6 s, got 0 and 30");
  write_file(folder.file("file"), {});
  CHECK(error_of([&] { data::download("http://127.0.0.1/", folder.file("file/f")); }) ==
        "download: folder " + folder.file("file") + " must be writable, got 'Not a directory'");
}

TEST_CASE("data: download reports an HTTP status, a cut body, and a refused connection") {
  const HttpServer missing(always(http_answer("no such thing", "404 Not Found")));
  CHECK(failure(missing.url() + "f") ==
        "download: " + missing.url() + "f must answer with HTTP status 200, got 404");
  const HttpServer cut(always(http_answer(std::string(1000, 'x'), "200 OK", 5000)));
  const std::string text = failure(cut.url());
  CHECK(text.find("download: " + cut.url() + " must send its whole content, got '") == 0);
  const std::string nobody = cat("http://127.0.0.1:", unused_port(), "/");
  CHECK(failure(nobody).find("download: " + nobody + " must send its whole content, got '") == 0);
}

TEST_CASE("data: download stops at the size cap, told by the header or not") {
  const HttpServer told(always(http_answer(std::string(100000, 'x'))));
  CHECK(failure(told.url(), {.max_bytes = 99999}) ==
        "download: " + told.url() + " must send at most 99999 bytes, got more");
  const HttpServer untold(
      always("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + std::string(100000, 'x')));
  CHECK(failure(untold.url(), {.max_bytes = 99999}) ==
        "download: " + untold.url() + " must send at most 99999 bytes, got more");
  const TempFolder folder;
  data::download(untold.url(), folder.file("f"), {}, {.max_bytes = 100000});
  CHECK(read_file(folder.file("f")).size() == 100000);
}

TEST_CASE("data: download gives up on servers that hang before, in, or along the answer") {
  const data::DownloadOptions options{.stall_timeout_s = 1};
  const HttpServer silent([](const std::string&, const HttpServer::Peer& peer) { peer.sleep(30); });
  const HttpServer hanging([](const std::string&, const HttpServer::Peer& peer) {
    peer.send(http_answer("begin", "200 OK", 5000));
    peer.sleep(30);
  });
  const HttpServer dripping([](const std::string&, const HttpServer::Peer& peer) {
    peer.send(http_answer("", "200 OK", 5000));
    for (int i = 0; i < 300 && !peer.stopped(); ++i) {
      peer.send("x");
      peer.sleep(0.1);
    }
  });
  for (const HttpServer* server : {&silent, &hanging, &dripping}) {
    const double seconds = seconds_of([&] {
      CHECK(failure(server->url(), options)
                .find("must send its whole content, got 'Operation too "
                      "slow") != std::string::npos);
    });
    CHECK(seconds < 10);  // the server itself would take 30
  }
}

TEST_CASE("data: download keeps nothing when the check of the content fails") {
  const HttpServer server(always(http_answer("wrong")));
  const TempFolder folder;
  const std::string path = write_file(folder.file("f"), {9});
  CHECK(error_of([&] {
          data::download(server.url(), path, [](const std::string&) { fail("not this"); });
        }) == "not this");
  CHECK(folder.files() == std::vector<std::string>{"f"});
  CHECK(read_file(path) == Bytes{9});
}

TEST_CASE("data: a set is downloaded once, into its own folder") {
  const HttpServer server(small_set_server());
  const TempFolder folder;
  const data::IdxSetOptions options{
      .root = folder.path(), .download = true, .mirror = server.url()};
  const data::IdxSetData first = data::load_idx_set(small_set(), options);
  CHECK(first.images.shape() == Shape{7, 4, 4});
  CHECK(first.labels.data<uint8_t>()[6] == 6);
  CHECK(folder.files() == std::vector<std::string>{"Small/raw/images.gz", "Small/raw/labels.gz"});
  const data::IdxSetData second = data::load_idx_set(small_set(), options);
  CHECK(same_bits(first.images, second.images));
  CHECK(server.requests() == std::vector<std::string>{"/images.gz", "/labels.gz"});
}

TEST_CASE("data: a set may be downloaded first and loaded later") {
  const HttpServer server(small_set_server());
  const TempFolder folder;
  data::IdxSetOptions options{.root = folder.path(), .mirror = server.url()};
  data::fetch_idx_set(small_set(), options);
  CHECK(server.requests() == std::vector<std::string>{"/images.gz", "/labels.gz"});
  data::fetch_idx_set(small_set(), options);
  CHECK(data::load_idx_set(small_set(), options).images.numel() == 112);
  CHECK(server.requests().size() == 2);
}

TEST_CASE("data: only the missing file of a set is downloaded, from the first mirror that has it") {
  const HttpServer empty_mirror(always(http_answer("", "503 Service Unavailable")));
  const HttpServer server(small_set_server());
  const TempFolder folder;
  write_file(folder.file("Small/raw/images"), kImages);
  data::IdxSet set = small_set();
  std::string base = server.url();
  base.pop_back();  // without its final slash
  set.mirrors = {empty_mirror.url(), base};
  data::load_idx_set(set, {.root = folder.path(), .download = true});
  CHECK(server.requests() == std::vector<std::string>{"/labels.gz"});
  CHECK(empty_mirror.requests() == std::vector<std::string>{"/labels.gz"});
}

TEST_CASE("data: CAIRN_DATA_MIRROR takes the place of a set's mirrors") {
  const HttpServer server(small_set_server());
  const SetEnvironment mirror("CAIRN_DATA_MIRROR", server.url().c_str());
  const TempFolder folder;
  data::IdxSet set = small_set();
  set.mirrors = {"http://127.0.0.1:1/"};
  CHECK(data::load_idx_set(set, {.root = folder.path(), .download = true}).images.numel() == 112);
}

TEST_CASE("data: a set with wrong content is refused and leaves no file") {
  Bytes other = kImages;
  other.back() ^= 1;
  Bytes longer = idx_bytes({8, 4, 4});
  std::string body;
  const HttpServer server(
      [&](const std::string&, const HttpServer::Peer& peer) { peer.send(http_answer(body)); });
  const TempFolder folder;
  const auto load = [&] {
    return error_of([&] {
      data::load_idx_set(small_set(),
                         {.root = folder.path(), .download = true, .mirror = server.url()});
    });
  };
  const std::string start = "small: download of images.gz must succeed, got ";
  const std::string name = "'" + server.url() + "images.gz'";
  body = "<html>log in first</html>";
  CHECK(load() == start + "read_idx: first two bytes of " + name + " must be 0 0, got 60 104");
  body = text_of(gzip(other));
  CHECK(load().find(start + "small: CRC-32 of the content of " + name + " must be 0x") == 0);
  body = text_of(gzip(longer));
  CHECK(load() == start + "read_idx: content of " + name +
                      " must be at most 112 bytes, got dimensions [8, 4, 4]");
  body = text_of(gzip(idx_bytes({4, 4, 7})));
  CHECK(load() == start + "small: dimensions of " + name + " must be [7, 4, 4], got [4, 4, 7]");
  CHECK(folder.files().empty());
}

TEST_CASE("data: a set that hangs is given up within the time limit") {
  const HttpServer server([](const std::string&, const HttpServer::Peer& peer) { peer.sleep(30); });
  const TempFolder folder;
  const double seconds = seconds_of([&] {
    CHECK(error_of([&] {
            data::load_idx_set(small_set(), {.root = folder.path(),
                                             .download = true,
                                             .mirror = server.url(),
                                             .stall_timeout_s = 1});
          }).find("small: download of images.gz must succeed, got download: ") == 0);
  });
  CHECK(seconds < 10);
  CHECK(folder.files().empty());
}

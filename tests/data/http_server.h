// An HTTP server on 127.0.0.1 for the download tests.
// Invariant: the destructor ends every connection, so no test can hang on it.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace cairn::test {

class HttpServer {
 public:
  // A connection's far end.
  class Peer {
   public:
    explicit Peer(int fd, const std::atomic<bool>& stop) : fd_(fd), stop_(stop) {}
    void send(const std::string& bytes) const;
    // Waits so long, or until the server ends.
    void sleep(double seconds) const;
    bool stopped() const { return stop_; }

   private:
    int fd_;
    const std::atomic<bool>& stop_;
  };
  // Called with the path of each request; what it sent is followed by the end of the connection.
  using Handler = std::function<void(const std::string& path, const Peer& peer)>;

  explicit HttpServer(Handler handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // "http://127.0.0.1:PORT/"
  std::string url() const;
  std::vector<std::string> requests() const;

 private:
  void serve();

  Handler handler_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stop_{false};
  mutable std::mutex mutex_;
  std::vector<std::string> requests_;
  std::thread thread_;
};

// A whole answer of status 200, or with another status line and a wrong length.
std::string http_answer(const std::string& body, const std::string& status = "200 OK",
                        long length = -1);
// A port on which nobody listens.
int unused_port();

}  // namespace cairn::test

// Fetching one file over HTTP.
// Invariant: `path` is either as it was or a complete, verified and synced file; no temporary file
// is left behind.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace cairn::data {

struct DownloadOptions {
  double connect_timeout_s = 10;
  double stall_timeout_s = 30;           // given up when below 1 KiB/s for so long; whole seconds
  int64_t max_bytes = int64_t{1} << 30;  // of the file as sent
};

// Loads `url` (http:// or https:// only, redirects included) into a temporary file beside `path`,
// calls verify(temporary file), which may throw, syncs and renames. Makes missing folders.
// Throws CommError on what the network or the server did, Error on the rest.
void download(const std::string& url, const std::string& path,
              const std::function<void(const std::string&)>& verify = {},
              const DownloadOptions& options = {});

}  // namespace cairn::data

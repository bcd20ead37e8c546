// A KV node for tests that need one in another process: prints its port, serves until its standard
// input ends.
#include <cstdio>

#include "kvstore/server/kvstore_server.h"

int main() {
  oscarkv::KvStoreServerOptions options;
  options.capacity = 64 << 20;
  options.huge_pages = false;
  auto server = oscarkv::KvStoreServer::Start(options, nullptr);
  if (!server.ok()) {
    std::fprintf(stderr, "%s\n", server.status().ToString().c_str());
    return 1;
  }
  std::printf("%d\n", (*server)->port());
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  (*server)->Shutdown(oscarkv::Duration(0));
  return 0;
}

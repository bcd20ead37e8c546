// Owners of UCX's handles, and the one translation of its errors. Move- and copy-free; each is
// destroyed before what it was made from. Every <ucp/...> of the project is in this folder.
#pragma once

#include <ucp/api/ucp.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace oscarkv {

absl::Status UcxStatus(ucs_status_t status, absl::string_view what);

// A UCX context. Thread-safe, as it is created for sharing.
class UcxContext {
 public:
  using Settings = std::vector<std::pair<std::string, std::string>>;  // names without "UCX_"
  // kUnavailable: none of the transports in TLS can be used here.
  static absl::StatusOr<std::shared_ptr<UcxContext>> Create(uint64_t features,
                                                            const Settings& settings);
  ~UcxContext() { ucp_cleanup(context_); }
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;
  ucp_context_h get() const { return context_; }

 private:
  explicit UcxContext(ucp_context_h context) : context_(context) {}
  const ucp_context_h context_;
};

// Memory known to a context; keeps the context. Thread-safe.
class UcxMemory {
 public:
  // Memory of UCX's own, zeroed.
  static absl::StatusOr<std::unique_ptr<UcxMemory>> Allocate(std::shared_ptr<UcxContext> context,
                                                             uint64_t bytes);
  static absl::StatusOr<std::unique_ptr<UcxMemory>> Register(std::shared_ptr<UcxContext> context,
                                                             absl::Span<uint8_t> memory);
  ~UcxMemory() { ucp_mem_unmap(context_->get(), memory_); }
  UcxMemory(const UcxMemory&) = delete;
  UcxMemory& operator=(const UcxMemory&) = delete;
  uint8_t* data() const { return data_; }
  absl::StatusOr<std::string> PackKey() const;

 private:
  UcxMemory(std::shared_ptr<UcxContext> context, ucp_mem_h memory, uint8_t* data)
      : context_(std::move(context)), memory_(memory), data_(data) {}
  static absl::StatusOr<std::unique_ptr<UcxMemory>> Map(std::shared_ptr<UcxContext> context,
                                                        const ucp_mem_map_params_t& params);

  const std::shared_ptr<UcxContext> context_;
  const ucp_mem_h memory_;
  uint8_t* const data_;
};

// A worker; after creation for one thread only, but for address().
class UcxWorker {
 public:
  static absl::StatusOr<std::unique_ptr<UcxWorker>> Create(std::shared_ptr<UcxContext> context);
  ~UcxWorker() { ucp_worker_destroy(worker_); }
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;
  ucp_worker_h get() const { return worker_; }
  const std::string& address() const { return address_; }
  int event_fd() const { return event_fd_; }
  bool Progress() { return ucp_worker_progress(worker_) != 0; }
  bool Arm() { return ucp_worker_arm(worker_) == UCS_OK; }

 private:
  UcxWorker(std::shared_ptr<UcxContext> context, ucp_worker_h worker)
      : context_(std::move(context)), worker_(worker) {}
  const std::shared_ptr<UcxContext> context_;
  const ucp_worker_h worker_;
  std::string address_;
  int event_fd_ = -1;
};

// An endpoint, for the worker's thread only. Broken endpoints tell by status(); destroy one only
// after closed().
class UcxEndpoint {
 public:
  // peer_errors: notice dead peers (UCP_ERR_HANDLING_MODE_PEER); shared memory cannot.
  static absl::StatusOr<std::unique_ptr<UcxEndpoint>> Create(UcxWorker* worker,
                                                             absl::string_view address,
                                                             bool peer_errors);
  ucp_ep_h get() const { return ep_; }
  const absl::Status& status() const { return status_; }
  void SetFailed(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  // By force with peer_errors; otherwise the library waits for operations in flight.
  void Close();
  bool closed();
  // The distinct transports of its lanes: "sysv", "tcp".
  std::string transports() const;

 private:
  explicit UcxEndpoint(bool peer_errors) : peer_errors_(peer_errors) {}
  static void OnError(void* arg, ucp_ep_h ep, ucs_status_t status);

  const bool peer_errors_;
  ucp_ep_h ep_ = nullptr;
  absl::Status status_;
  bool closing_ = false;
  void* close_request_ = nullptr;
};

// Sends UCX's own messages to our log instead of standard output. Once per process.
void RedirectUcxLog();

}  // namespace oscarkv

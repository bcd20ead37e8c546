#include "transport/ucx/handles.h"

#include <ucs/debug/log_def.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

ucs_log_func_rc_t ForwardLog(const char* file, unsigned line, const char* function,
                             ucs_log_level_t level, const ucs_log_component_config_t* config,
                             const char* message, va_list args) {
  if (level > UCS_LOG_LEVEL_WARN) return UCS_LOG_FUNC_RC_STOP;
  char text[1024];
  std::vsnprintf(text, sizeof(text), message, args);
  const LogLevel ours = level <= UCS_LOG_LEVEL_ERROR ? LogLevel::kError : LogLevel::kWarn;
  Log(ours, "ucx", {{"message", text}, {"where", absl::StrCat(function, ":", line)}});
  // UCX goes on to print a backtrace and abort after a fatal message.
  return level == UCS_LOG_LEVEL_FATAL ? UCS_LOG_FUNC_RC_CONTINUE : UCS_LOG_FUNC_RC_STOP;
}

}  // namespace

void RedirectUcxLog() {
  static std::once_flag once;
  std::call_once(once, [] { ucs_log_push_handler(ForwardLog); });
}

absl::Status UcxStatus(ucs_status_t status, absl::string_view what) {
  if (status == UCS_OK) return absl::OkStatus();
  const std::string text = absl::StrCat(what, ": ", ucs_status_string(status));
  switch (status) {
    case UCS_ERR_UNREACHABLE:
    case UCS_ERR_ENDPOINT_TIMEOUT:
    case UCS_ERR_CONNECTION_RESET:
    case UCS_ERR_NOT_CONNECTED:
    case UCS_ERR_REJECTED:
    case UCS_ERR_NO_DEVICE:
    case UCS_ERR_IO_ERROR:
      return absl::UnavailableError(text);
    case UCS_ERR_CANCELED:
      return absl::CancelledError(text);
    case UCS_ERR_TIMED_OUT:
      return absl::DeadlineExceededError(text);
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_NO_RESOURCE:
    case UCS_ERR_EXCEEDS_LIMIT:
    case UCS_ERR_BUFFER_TOO_SMALL:
    case UCS_ERR_SHMEM_SEGMENT:
      return absl::ResourceExhaustedError(text);
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
      return absl::InvalidArgumentError(text);
    case UCS_ERR_UNSUPPORTED:
    case UCS_ERR_NOT_IMPLEMENTED:
      return absl::FailedPreconditionError(text);
    default:
      return absl::InternalError(text);
  }
}

absl::StatusOr<std::shared_ptr<UcxContext>> UcxContext::Create(uint64_t features,
                                                               const Settings& settings) {
  RedirectUcxLog();
  ucp_config_t* config = nullptr;
  RETURN_IF_ERROR(
      UcxStatus(ucp_config_read(nullptr, nullptr, &config), "cannot read UCX's configuration"));
  const std::unique_ptr<ucp_config_t, void (*)(ucp_config_t*)> owner(config, ucp_config_release);
  for (const auto& [name, value] : settings) {
    const ucs_status_t status = ucp_config_modify(config, name.c_str(), value.c_str());
    if (status != UCS_OK) {
      return absl::InvalidArgumentError(
          absl::StrCat("UCX refuses ", name, "=", value, ": ", ucs_status_string(status)));
    }
  }
  ucp_params_t params{};
  params.field_mask =
      UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED | UCP_PARAM_FIELD_NAME;
  params.features = features;
  params.mt_workers_shared = 1;  // memory is mapped by other threads than the worker's
  params.name = "oscarkv";
  ucp_context_h context = nullptr;
  RETURN_IF_ERROR(UcxStatus(ucp_init(&params, config, &context), "cannot initialise UCX"));
  return std::shared_ptr<UcxContext>(new UcxContext(context));
}

absl::StatusOr<std::unique_ptr<UcxMemory>> UcxMemory::Map(std::shared_ptr<UcxContext> context,
                                                          const ucp_mem_map_params_t& params) {
  ucp_mem_h memory = nullptr;
  RETURN_IF_ERROR(UcxStatus(ucp_mem_map(context->get(), &params, &memory),
                            absl::StrCat("cannot map ", params.length, " bytes")));
  ucp_mem_attr_t attr{};
  attr.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS;
  const absl::Status queried =
      UcxStatus(ucp_mem_query(memory, &attr), "cannot query mapped memory");
  std::unique_ptr<UcxMemory> mapped(
      new UcxMemory(std::move(context), memory, static_cast<uint8_t*>(attr.address)));
  if (!queried.ok()) return queried;
  return mapped;
}

absl::StatusOr<std::unique_ptr<UcxMemory>> UcxMemory::Allocate(std::shared_ptr<UcxContext> context,
                                                               uint64_t bytes) {
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                      UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.length = bytes;
  params.flags = UCP_MEM_MAP_ALLOCATE;
  return Map(std::move(context), params);
}

absl::StatusOr<std::unique_ptr<UcxMemory>> UcxMemory::Register(std::shared_ptr<UcxContext> context,
                                                               absl::Span<uint8_t> memory) {
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
  params.address = memory.data();
  params.length = memory.size();
  return Map(std::move(context), params);
}

absl::StatusOr<std::string> UcxMemory::PackKey() const {
  void* buffer = nullptr;
  size_t size = 0;
  RETURN_IF_ERROR(UcxStatus(ucp_rkey_pack(context_->get(), memory_, &buffer, &size),
                            "cannot pack a remote key"));
  std::string key(static_cast<const char*>(buffer), size);
  ucp_rkey_buffer_release(buffer);
  return key;
}

absl::StatusOr<std::unique_ptr<UcxWorker>> UcxWorker::Create(std::shared_ptr<UcxContext> context) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  // Created and destroyed by one thread, used by another in between: one at a time.
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  ucp_worker_h handle = nullptr;
  RETURN_IF_ERROR(
      UcxStatus(ucp_worker_create(context->get(), &params, &handle), "cannot create a UCX worker"));
  std::unique_ptr<UcxWorker> worker(new UcxWorker(std::move(context), handle));
  ucp_address_t* address = nullptr;
  size_t size = 0;
  RETURN_IF_ERROR(UcxStatus(ucp_worker_get_address(handle, &address, &size),
                            "cannot get the worker's address"));
  worker->address_.assign(reinterpret_cast<const char*>(address), size);
  ucp_worker_release_address(handle, address);
  RETURN_IF_ERROR(UcxStatus(ucp_worker_get_efd(handle, &worker->event_fd_),
                            "cannot get the worker's event fd"));
  return worker;
}

absl::StatusOr<std::unique_ptr<UcxEndpoint>> UcxEndpoint::Create(UcxWorker* worker,
                                                                 absl::string_view address,
                                                                 bool peer_errors) {
  std::unique_ptr<UcxEndpoint> endpoint(new UcxEndpoint(peer_errors));
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = peer_errors ? UCP_ERR_HANDLING_MODE_PEER : UCP_ERR_HANDLING_MODE_NONE;
  if (peer_errors) {
    params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.err_handler.cb = OnError;
    params.err_handler.arg = endpoint.get();
  }
  RETURN_IF_ERROR(UcxStatus(ucp_ep_create(worker->get(), &params, &endpoint->ep_),
                            "cannot create an endpoint to the peer"));
  return endpoint;
}

void UcxEndpoint::OnError(void* arg, ucp_ep_h ep, ucs_status_t status) {
  static_cast<UcxEndpoint*>(arg)->SetFailed(
      absl::UnavailableError(absl::StrCat("the peer is gone: ", ucs_status_string(status))));
}

void UcxEndpoint::Close() {
  if (closing_) return;
  closing_ = true;
  SetFailed(absl::UnavailableError("endpoint is closed"));
  ucp_request_param_t param{};
  if (peer_errors_) {
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  }
  void* request = ucp_ep_close_nbx(ep_, &param);
  if (UCS_PTR_IS_PTR(request)) {
    close_request_ = request;
  } else if (UCS_PTR_IS_ERR(request)) {
    LogWarn("transport: closing an endpoint failed",
            {{"error", ucs_status_string(UCS_PTR_STATUS(request))}});
  }
}

bool UcxEndpoint::closed() {
  if (close_request_ != nullptr && ucp_request_check_status(close_request_) != UCS_INPROGRESS) {
    ucp_request_free(close_request_);
    close_request_ = nullptr;
  }
  return closing_ && close_request_ == nullptr;
}

std::string UcxEndpoint::transports() const {
  // UCX 1.13 has no query for this; its print-out has one line a lane: "#   lane[0]:  1:tcp/eth0.0
  // md[1] ...".
  char* text = nullptr;
  size_t size = 0;
  FILE* stream = open_memstream(&text, &size);
  if (stream == nullptr) return "unknown";
  ucp_ep_print_info(ep_, stream);
  std::fclose(stream);
  const std::unique_ptr<char, void (*)(void*)> owner(text, std::free);
  std::vector<std::string> names;
  for (absl::string_view line : absl::StrSplit(absl::string_view(text, size), '\n')) {
    const size_t lane = line.find("lane["), colon = line.find("]:", lane == line.npos ? 0 : lane);
    if (lane == line.npos || colon == line.npos) continue;
    const size_t begin = line.find(':', colon + 2), end = line.find('/', begin);
    if (begin == line.npos || end == line.npos) continue;
    std::string name(line.substr(begin + 1, end - begin - 1));
    if (std::find(names.begin(), names.end(), name) == names.end())
      names.push_back(std::move(name));
  }
  return names.empty() ? "unknown" : absl::StrJoin(names, ",");
}

}  // namespace oscarkv

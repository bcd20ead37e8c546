// oscarkv serve: a whole cluster on one machine, in one process or (--processes) one process per
// role.
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/child_process.h"
#include "cli/command.h"
#include "cli/role.h"
#include "cli/start_roles.h"
#include "common/auth/security_options.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace oscarkv::cli {
namespace {

class ServeCommand final : public Command {
 public:
  std::string name() const override { return "serve"; }
  std::string summary() const override {
    return "Run KV nodes, prefill workers, attention workers and a gateway on this machine";
  }

  void AddOptions(OptionTable* table) override {
    table->AddString(
        "model", &model_, "DIR",
        "Hugging Face folder of the model, with its rotation files beside the weights");
    table->AddString("listen", &listen_, "HOST:PORT",
                     "The gateway's gRPC endpoint; port 0 picks a free one");
    table->AddString(
        "http-listen", &http_listen_, "HOST:PORT",
        "The gateway's OpenAI-compatible HTTP API; port 0 picks a free one; empty: none");
    table->AddBool("processes", &processes_,
                   "One process per role, as in a cluster, instead of one for all");
    table->AddInt("kvstores", &kvstores_, 1, 64, "KV nodes");
    table->AddInt("prefill-workers", &prefills_, 1, 16, "Prefill workers");
    table->AddInt("attention-workers", &attentions_, 1, 16, "Attention workers");
    table->AddInt("replicas", &replicas_, 1, 8,
                  "KV nodes that hold each block; they share this machine's fate, so more than one "
                  "only survives the end of a node's process");
    table->AddBytes("capacity", &capacity_, 16 << 20, uint64_t{1} << 50, "Memory of each KV node");
    table->AddChoice("profile", &profile_, {"oscar", "shaped", "shaped-sym", "bf16"},
                     "How the KV cache is stored");
    table->AddChoice(
        "prefill-history", &history_, {"exact", "canonical"},
        "What a prompt's tokens attend: unquantised history, or the stored codes as decoding does");
    table->AddBool("deterministic", &deterministic_, "As the workers' option");
    table->AddString("device", &device_, "DEVICE",
                     "What the workers compute on: cpu, or cuda:N for GPU N");
    table->AddChoice("data-path", &data_path_, {"ucx", "grpc"}, "How blocks travel");
    table->AddString("ucx-lanes", &ucx_lanes_, "LIST",
                     "auto, shm, tcp, rdma or a list as in UCX_TLS");
    table->AddString("log-dir", &log_dir_, "DIR",
                     "With --processes: each role's log goes to a file there");
    auth::AddServerSecurityOptions(table, &security_);
    AddRoleOptions(table, &role_, /*drains=*/true);
  }

  absl::Status Run() override { return processes_ ? RunProcesses() : RunInProcess(); }

 private:
  std::vector<std::string> WorkerArgs(const std::string& nodes) const {
    return {"--model",
            model_,
            "--nodes",
            nodes,
            "--profile",
            profile_,
            "--prefill-history",
            history_,
            "--data-path",
            data_path_,
            "--ucx-lanes",
            ucx_lanes_,
            "--replicas",
            Replicas(),
            deterministic_ ? "--deterministic" : "--no-deterministic",
            "--device",
            device_};
  }

  std::string Replicas() const { return absl::StrCat(std::min(replicas_, kvstores_)); }

  // In one process: the same tables as the role commands', filled with the same arguments.
  absl::Status RunInProcess() {
    const auto start_all = [this](MetricRegistry* registry) -> absl::StatusOr<RunningRole> {
      auto roles = std::make_shared<std::vector<RunningRole>>();
      const auto start = [&](const std::string& role,
                             const std::vector<std::string>& args) -> absl::StatusOr<RolePorts> {
        ASSIGN_OR_RETURN(RunningRole r, StartRole(role, args, registry));
        roles->push_back(r);
        return r.ports;
      };
      ASSIGN_OR_RETURN(const RolePorts ports, StartAll(start));
      return RunningRole{ports, [roles](Duration drain) {
                           for (auto it = roles->rbegin(); it != roles->rend(); ++it)
                             it->shutdown(drain);
                         }};
    };
    return RunRole("serve", role_, security_, start_all);
  }

  absl::Status RunProcesses() {
    BlockStopSignals();
    RETURN_IF_ERROR(InitLog(role_.log_level, "serve"));
    if (!log_dir_.empty()) {
      std::error_code error;
      std::filesystem::create_directories(log_dir_, error);
      if (error)
        return absl::InvalidArgumentError(
            absl::StrCat("--log-dir=", log_dir_, ": ", error.message()));
    }
    ChildProcesses children(log_dir_);
    const auto start = [&](const std::string& role,
                           std::vector<std::string> args) -> absl::StatusOr<RolePorts> {
      args.insert(args.begin(), role);
      args.insert(args.end(), {"--log-level", role_.log_level});
      // All nodes stop together: none has to bring its blocks to another.
      const Duration drain = role == "kvstore" ? Duration(0) : role_.drain_timeout;
      args.insert(args.end(), {"--drain-timeout", absl::StrCat(drain.count(), "ns")});
      return children.Start(role, args, std::chrono::seconds(60));
    };
    ASSIGN_OR_RETURN(const RolePorts ports, StartAll(start));
    LogInfo("ready", {{"gateway", absl::StrCat("127.0.0.1:", ports.grpc)},
                      {"http_port", absl::StrCat(ports.http)}});
    RETURN_IF_ERROR(WriteReadyFile(role_.ready_file, ports, 0));
    absl::Status status = children.WaitForStopSignalOrExit();
    children.StopAll(role_.drain_timeout + std::chrono::seconds(15));
    return status;
  }

  // Starts the roles in order by `start(role, args) -> its ports`; returns the gateway's.
  template <typename Start>
  absl::StatusOr<RolePorts> StartAll(const Start& start_role) {
    RETURN_IF_ERROR(auth::CheckSecurityOptions(security_));
    const auto start = [&](const char* role, std::vector<std::string> args) {
      const std::vector<std::string> security = auth::SecurityArgs(security_);
      args.insert(args.end(), security.begin(), security.end());
      return start_role(role, std::move(args));
    };
    const auto start_some =
        [&](const char* role, int n,
            const std::vector<std::string>& args) -> absl::StatusOr<std::string> {
      std::vector<std::string> endpoints;
      for (int i = 0; i < n; ++i) {
        ASSIGN_OR_RETURN(const RolePorts ports, start(role, args));
        endpoints.push_back(absl::StrCat("127.0.0.1:", ports.grpc));
      }
      return absl::StrJoin(endpoints, ",");
    };
    const std::vector<std::string> store_args = {"--listen",    "127.0.0.1:0",
                                                 "--capacity",  absl::StrCat(capacity_),
                                                 "--ucx-lanes", ucx_lanes_};
    ASSIGN_OR_RETURN(const std::string nodes, StartNodes(start, start_some, store_args));
    std::vector<std::string> worker_args = WorkerArgs(nodes);
    worker_args.insert(worker_args.end(), {"--listen", "127.0.0.1:0"});
    ASSIGN_OR_RETURN(const std::string prefills, start_some("prefill", prefills_, worker_args));
    ASSIGN_OR_RETURN(const std::string attentions,
                     start_some("attention", attentions_, worker_args));
    return start("gateway", {"--model", model_, "--nodes", nodes, "--replicas", Replicas(),
                             "--prefill", prefills, "--attention", attentions, "--listen", listen_,
                             "--http-listen", http_listen_});
  }

  // Nodes of one process share its fate. Those with processes of their own restore each other's
  // lost copies; for that they are told their addresses when they start.
  template <typename Start, typename StartSome>
  absl::StatusOr<std::string> StartNodes(const Start& start, const StartSome& start_some,
                                         std::vector<std::string> args) {
    if (!processes_ || replicas_ < 2 || kvstores_ < 2)
      return start_some("kvstore", kvstores_, args);
    ASSIGN_OR_RETURN(const std::vector<int> ports, FreePorts(kvstores_));
    std::vector<std::string> endpoints;
    for (const int port : ports) endpoints.push_back(absl::StrCat("127.0.0.1:", port));
    const std::string nodes = absl::StrJoin(endpoints, ",");
    args.insert(args.end(), {"--nodes", nodes, "--replicas", Replicas()});
    for (const std::string& endpoint : endpoints) {
      args[1] = endpoint;  // of --listen
      RETURN_IF_ERROR(start("kvstore", args).status());
    }
    return nodes;
  }

  std::string model_ = "models/reference", listen_ = "127.0.0.1:7400", profile_ = "oscar",
              history_ = "exact", device_ = "cpu";
  std::string http_listen_, data_path_ = "ucx", ucx_lanes_ = "auto", log_dir_;
  bool deterministic_ = false, processes_ = false;
  int kvstores_ = 1, replicas_ = 1, prefills_ = 1, attentions_ = 1;
  uint64_t capacity_ = uint64_t{1} << 30;
  auth::SecurityOptions security_;  // of all roles
  RoleOptions role_;
};

}  // namespace

std::unique_ptr<Command> NewServeCommand() {
  return std::make_unique<ServeCommand>();
}

}  // namespace oscarkv::cli

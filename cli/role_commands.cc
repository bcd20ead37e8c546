// oscarkv kvstore | prefill | attention | gateway: one role in this process; and StartRole, by
// which `serve` starts them all in one.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "attention_worker/attention_server.h"
#include "cli/command.h"
#include "cli/role.h"
#include "cli/start_roles.h"
#include "common/status_macros.h"
#include "gateway/gateway_server.h"
#include "kvstore/server/kvstore_server.h"
#include "prefill_worker/prefill_server.h"

namespace oscarkv::cli {
namespace {

// What a role is: its name, its options, whether it has requests to drain, and how to start it.
struct KvstoreRole {
  using Options = KvStoreServerOptions;
  static constexpr const char* kName = "kvstore";
  static constexpr bool kDrains = true;
  static constexpr const char* kSummary = "Run a KV node: the memory that blocks are stored in";
  static absl::StatusOr<RunningRole> Start(const Options& options, MetricRegistry* registry) {
    ASSIGN_OR_RETURN(std::shared_ptr<KvStoreServer> server,
                     KvStoreServer::Start(options, registry));
    return RunningRole{{server->port()}, [server](Duration drain) { server->Shutdown(drain); }};
  }
};

struct PrefillRole {
  using Options = prefill_worker::PrefillServerOptions;
  static constexpr const char* kName = "prefill";
  static constexpr bool kDrains = true;
  static constexpr const char* kSummary =
      "Run a prefill worker: prompts to 2-bit blocks in the store";
  static absl::StatusOr<RunningRole> Start(const Options& options, MetricRegistry* registry) {
    ASSIGN_OR_RETURN(std::shared_ptr<prefill_worker::PrefillServer> server,
                     prefill_worker::PrefillServer::Start(options, registry));
    return RunningRole{{server->port()}, [server](Duration drain) { server->Shutdown(drain); }};
  }
};

struct AttentionRole {
  using Options = attention_worker::AttentionServerOptions;
  static constexpr const char* kName = "attention";
  static constexpr bool kDrains = true;
  static constexpr const char* kSummary =
      "Run an attention worker: decodes over 2-bit pages from the store";
  static absl::StatusOr<RunningRole> Start(const Options& options, MetricRegistry* registry) {
    ASSIGN_OR_RETURN(std::shared_ptr<attention_worker::AttentionServer> server,
                     attention_worker::AttentionServer::Start(options, registry));
    return RunningRole{{server->port()}, [server](Duration drain) { server->Shutdown(drain); }};
  }
};

struct GatewayRole {
  using Options = gateway::GatewayOptions;
  static constexpr const char* kName = "gateway";
  static constexpr bool kDrains = true;
  static constexpr const char* kSummary =
      "Run a gateway: takes prompts, routes them to workers, streams tokens";
  static absl::StatusOr<RunningRole> Start(const Options& options, MetricRegistry* registry) {
    ASSIGN_OR_RETURN(std::shared_ptr<gateway::GatewayServer> server,
                     gateway::GatewayServer::Start(options, registry));
    return RunningRole{{server->port(), server->http_port()},
                       [server](Duration drain) { server->Shutdown(drain); }};
  }
};

// The role's own AddOptions, found in its namespace (inside RoleCommand the member of that name
// hides it).
template <typename Options>
void AddRows(OptionTable* table, Options* options) {
  AddOptions(table, options);
}

const auth::SecurityOptions& SecurityOf(const auto& options) {
  if constexpr (requires { options.worker; }) {
    return options.worker.security;
  } else {
    return options.security;
  }
}

template <typename Role>
class RoleCommand final : public Command {
 public:
  std::string name() const override { return Role::kName; }
  std::string summary() const override { return Role::kSummary; }
  void AddOptions(OptionTable* table) override {
    AddRoleOptions(table, &role_, Role::kDrains);
    AddRows(table, &options_);
  }
  absl::Status Run() override {
    return RunRole(Role::kName, role_, SecurityOf(options_),
                   [this](MetricRegistry* registry) { return Role::Start(options_, registry); });
  }

 private:
  RoleOptions role_;
  typename Role::Options options_;
};

template <typename Role>
absl::StatusOr<RunningRole> StartWithArgs(const std::vector<std::string>& args,
                                          MetricRegistry* registry) {
  typename Role::Options options;
  OptionTable table;
  AddRows(&table, &options);
  // "--name value", or as on a command line a flag alone: "--name", "--no-name".
  for (size_t i = 0; i < args.size();) {
    const absl::string_view name = absl::StripPrefix(args[i++], "--");
    if (i < args.size() && !absl::StartsWith(args[i], "--")) {
      RETURN_IF_ERROR(table.Set(name, args[i++]));
    } else {
      const bool off = absl::StartsWith(name, "no-");
      RETURN_IF_ERROR(table.Set(absl::StripPrefix(name, "no-"), off ? "false" : "true"));
    }
  }
  return Role::Start(options, registry);
}

}  // namespace

absl::StatusOr<RunningRole> StartRole(const std::string& role, const std::vector<std::string>& args,
                                      MetricRegistry* registry) {
  if (role == KvstoreRole::kName) return StartWithArgs<KvstoreRole>(args, registry);
  if (role == PrefillRole::kName) return StartWithArgs<PrefillRole>(args, registry);
  if (role == AttentionRole::kName) return StartWithArgs<AttentionRole>(args, registry);
  if (role == GatewayRole::kName) return StartWithArgs<GatewayRole>(args, registry);
  return absl::InternalError(absl::StrCat("no role '", role, "'"));
}

std::unique_ptr<Command> NewKvstoreCommand() {
  return std::make_unique<RoleCommand<KvstoreRole>>();
}
std::unique_ptr<Command> NewPrefillCommand() {
  return std::make_unique<RoleCommand<PrefillRole>>();
}
std::unique_ptr<Command> NewAttentionCommand() {
  return std::make_unique<RoleCommand<AttentionRole>>();
}
std::unique_ptr<Command> NewGatewayCommand() {
  return std::make_unique<RoleCommand<GatewayRole>>();
}

}  // namespace oscarkv::cli

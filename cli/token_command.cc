// oscarkv token new: makes a bearer token, and the line by which an auth file lets it in.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "common/auth/auth_file.h"
#include "common/auth/token.h"
#include "common/status_macros.h"

namespace oscarkv::cli {
namespace {

class TokenNewCommand final : public Command {
 public:
  std::string name() const override { return "token new"; }
  std::string summary() const override {
    return "Make a bearer token: prints the token, which is kept nowhere, then its line for "
           "--auth-file";
  }
  void AddOptions(OptionTable* table) override {
    table->AddString("tenant", &tenant_, "NAME", "Whose token it is; empty: the default tenant's");
    table->AddString("roles", &roles_, "ROLE,...",
                     "What its owner may do: client, worker, operator");
    table->AddString("name", &name_, "NAME", "Its owner, for logs");
    table->AddString("expires", &expires_, "TIME",
                     "Until when it is good, as 2027-01-31T00:00:00Z; empty: for ever");
  }
  absl::Status Run() override {
    ASSIGN_OR_RETURN(const std::string token, auth::NewToken());
    std::string line = absl::StrCat("token sha256:", auth::TokenDigest(token), " roles=", roles_);
    for (const auto& [field, value] :
         {std::pair{"tenant", &tenant_}, {"name", &name_}, {"expires", &expires_}}) {
      if (!value->empty()) absl::StrAppend(&line, " ", field, "=", *value);
    }
    RETURN_IF_ERROR(auth::ParseAuthFile("the options", line).status());
    std::printf("%s\n%s\n", token.c_str(), line.c_str());
    return absl::OkStatus();
  }

 private:
  std::string tenant_, roles_ = "client", name_, expires_;
};

}  // namespace

std::unique_ptr<Command> NewTokenNewCommand() {
  return std::make_unique<TokenNewCommand>();
}

}  // namespace oscarkv::cli

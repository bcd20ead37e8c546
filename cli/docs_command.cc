// oscarkv docs: prints docs/options.md, docs/metrics.md, the manual page, the shell completion and
// config files from the tables that the code itself uses.
#include <cstdio>

#include "cli/command.h"
#include "cli/metrics_docs.h"
#include "cli/reference_pages.h"
#include "common/config_file.h"

namespace oscarkv::cli {
namespace {

class DocsCommand final : public Command {
 public:
  DocsCommand(const std::vector<std::unique_ptr<Command>>* commands,
              const std::vector<OptionTable>* tables)
      : commands_(commands), tables_(tables) {}
  std::string name() const override { return "docs"; }
  std::string summary() const override {
    return "Print the reference pages: options and metrics as Markdown, the manual page, the "
           "completion of bash, a role's config file";
  }
  void AddOptions(OptionTable* table) override {
    table->AddChoice("page", &page_,
                     {"options", "metrics", "man", "completion", "config-kvstore", "config-prefill",
                      "config-attention", "config-gateway"},
                     "Which page");
  }
  absl::Status Run() override {
    std::fputs(Page().c_str(), stdout);
    return absl::OkStatus();
  }

 private:
  std::string Page() const {
    std::vector<CommandTable> commands;
    for (size_t i = 0; i < commands_->size(); ++i) {
      commands.push_back({(*commands_)[i]->name(), (*commands_)[i]->summary(), &(*tables_)[i]});
    }
    if (page_ == "metrics") return MetricsPage();
    if (page_ == "man") return ManPage(commands, OSCARKV_VERSION);
    if (page_ == "completion") return BashCompletion(commands);
    for (const CommandTable& c : commands) {
      if (page_ == "config-" + c.name) return ConfigTemplate(*c.options);
    }
    return OptionsPage(commands);
  }

  const std::vector<std::unique_ptr<Command>>* const commands_;
  const std::vector<OptionTable>* const tables_;
  std::string page_ = "options";
};

}  // namespace

std::unique_ptr<Command> NewDocsCommand(const std::vector<std::unique_ptr<Command>>* commands,
                                        const std::vector<OptionTable>* tables) {
  return std::make_unique<DocsCommand>(commands, tables);
}

}  // namespace oscarkv::cli

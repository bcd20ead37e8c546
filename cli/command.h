// A subcommand of `oscarkv`: its options as tables, and what it runs. main.cc turns the tables into
// flags, --help and config files; docs_command.cc turns the same tables into docs/options.md.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/options.h"

namespace oscarkv::cli {

class Command {
 public:
  virtual ~Command() = default;
  virtual std::string name() const = 0;     // "kvstore", "model check"
  virtual std::string summary() const = 0;  // one sentence
  // Adds the command's rows. Called once.
  virtual void AddOptions(OptionTable* table) = 0;
  // kOk: exit status 0. Any other status is printed and exits with 1; kInvalidArgument (a wrong
  // flag) with 2.
  virtual absl::Status Run() = 0;
};

std::unique_ptr<Command> NewKvstoreCommand();
std::unique_ptr<Command> NewPrefillCommand();
std::unique_ptr<Command> NewAttentionCommand();
std::unique_ptr<Command> NewGatewayCommand();
std::unique_ptr<Command> NewServeCommand();
std::unique_ptr<Command> NewGenerateCommand();
std::unique_ptr<Command> NewStatusCommand();
std::unique_ptr<Command> NewTraceCommand();
std::unique_ptr<Command> NewSizeCommand();
std::unique_ptr<Command> NewDemoCommand();
std::unique_ptr<Command> NewBenchCommand();
std::unique_ptr<Command> NewBenchDecodeCommand();
std::unique_ptr<Command> NewBenchPrefillCommand();
std::unique_ptr<Command> NewTokenizeCommand();
std::unique_ptr<Command> NewModelCheckCommand();
std::unique_ptr<Command> NewCalibrateCommand();
std::unique_ptr<Command> NewEvalCommand();
std::unique_ptr<Command> NewCodecShowCommand();
std::unique_ptr<Command> NewCodecConvertCommand();
std::unique_ptr<Command> NewHealthCommand();
std::unique_ptr<Command> NewTokenNewCommand();
// `commands`: all of them, for their tables; must outlive the result.
std::unique_ptr<Command> NewDocsCommand(const std::vector<std::unique_ptr<Command>>* commands,
                                        const std::vector<OptionTable>* tables);

}  // namespace oscarkv::cli

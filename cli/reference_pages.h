// Pages made of the commands' option tables: Markdown, manual page, shell completion, config files.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"

namespace oscarkv::cli {

// A command and its rows.
struct CommandTable {
  std::string name;
  std::string summary;
  const OptionTable* options = nullptr;
};

std::string OptionsPage(const std::vector<CommandTable>& commands);
// oscarkv(1), in roff.
std::string ManPage(const std::vector<CommandTable>& commands, const std::string& version);
// A completion function for bash.
std::string BashCompletion(const std::vector<CommandTable>& commands);

}  // namespace oscarkv::cli

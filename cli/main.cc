// The `oscarkv` binary: one subcommand per role and tool.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cli/command.h"
#include "cli/read_file.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "common/config_file.h"
#include "common/options.h"
#include "common/status_macros.h"

namespace oscarkv::cli {
namespace {

// Binds a table's rows to flags of `app`. CLI11 checks spelling and arity, the table checks values.
void Bind(const OptionTable& table, CLI::App* app) {
  for (const OptionRow& row : table.rows()) {
    const auto set = [&row](const std::string& value) {
      if (const absl::Status s = row.set(value); !s.ok()) {
        throw CLI::ValidationError(std::string(s.message()));  // CLI11's way to refuse a value
      }
    };
    std::string doc = row.doc;
    if (row.allowed != "text" && !row.is_flag && row.allowed != row.value_name) {
      doc += " [" + row.allowed + "]";
    }
    if (row.is_flag) {
      app->add_flag(
          "--" + row.name + ",!--no-" + row.name,
          [set](std::int64_t n) { set(n > 0 ? "true" : "false"); }, doc);
    } else if (row.repeatable) {
      const auto set_all = [set](const std::vector<std::string>& values) {
        for (const std::string& v : values) set(v);
      };
      app->add_option_function<std::vector<std::string>>("--" + row.name, set_all, doc)
          ->type_name(row.value_name)
          ->allow_extra_args(false);
    } else {
      const std::string names = (row.positional ? row.name + "," : "") + "--" + row.name;
      CLI::Option* option = app->add_option_function<std::string>(names, set, doc);
      option->type_name(row.value_name);
      if (!row.default_value.empty()) option->default_str(row.default_value);
    }
  }
}

// "model check" lives under a group "model".
CLI::App* AddSubcommand(CLI::App* app, const std::string& name, const std::string& summary) {
  const size_t space = name.find(' ');
  if (space == std::string::npos) return app->add_subcommand(name, summary);
  const std::string group = name.substr(0, space);
  CLI::App* parent = nullptr;
  for (CLI::App* a : app->get_subcommands([&](CLI::App* a) { return a->get_name() == group; }))
    parent = a;
  if (parent == nullptr) {
    parent = app->add_subcommand(group, "Tools for " + group + "s");
    parent->require_subcommand(1);
  }
  return AddSubcommand(parent, name.substr(space + 1), summary);
}

// Fills what the command line left open from the file of --config.
absl::Status ReadConfig(const std::string& path, const CLI::App& sub, const OptionTable& table) {
  if (path.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string text, ReadFileOrStdin(path));
  return ApplyConfig(table, path, text, [&sub](const std::string& name) {
    return sub.get_option("--" + name)->count() > 0;
  });
}

std::vector<std::unique_ptr<Command>> AllCommands() {
  std::vector<std::unique_ptr<Command>> commands;
  commands.push_back(NewServeCommand());
  commands.push_back(NewGenerateCommand());
  commands.push_back(NewStatusCommand());
  commands.push_back(NewTraceCommand());
  commands.push_back(NewSizeCommand());
  commands.push_back(NewDemoCommand());
  commands.push_back(NewBenchCommand());
  commands.push_back(NewBenchDecodeCommand());  // subcommands of the one before
  commands.push_back(NewBenchPrefillCommand());
  commands.push_back(NewKvstoreCommand());
  commands.push_back(NewPrefillCommand());
  commands.push_back(NewAttentionCommand());
  commands.push_back(NewGatewayCommand());
  commands.push_back(NewTokenizeCommand());
  commands.push_back(NewModelCheckCommand());
  commands.push_back(NewCalibrateCommand());
  commands.push_back(NewEvalCommand());
  commands.push_back(NewCodecShowCommand());
  commands.push_back(NewCodecConvertCommand());
  commands.push_back(NewHealthCommand());
  commands.push_back(NewTokenNewCommand());
  return commands;
}

// "--name=" says that the value is empty; CLI11 would take the next argument for it. In reverse, as
// CLI11 wants them.
std::vector<std::string> Arguments(int argc, char** argv) {
  std::vector<std::string> args;
  for (int i = argc - 1; i > 0; --i) {
    const std::string_view arg = argv[i];
    if (arg.size() > 3 && arg.substr(0, 2) == "--" && arg.find('=') == arg.size() - 1) {
      args.emplace_back();
      args.emplace_back(arg.substr(0, arg.size() - 1));
    } else {
      args.emplace_back(arg);
    }
  }
  return args;
}

int Main(int argc, char** argv) {
  CLI::App app(
      "oscarkv keeps the KV cache of large language models at 2 bits, in a distributed paged "
      "store.\n"
      "Start with `oscarkv serve --model DIR`, then `oscarkv generate --prompt-file FILE`.",
      "oscarkv");
  app.require_subcommand(1);
  app.set_version_flag("--version", VersionText,
                       "Print version, commit, compiler, UCX and kernels");
  app.get_formatter()->column_width(38);

  std::vector<std::unique_ptr<Command>> commands = AllCommands();
  std::vector<OptionTable> tables(commands.size() + 1);
  commands.push_back(NewDocsCommand(&commands, &tables));
  std::string config;
  const CLI::App* chosen_app = nullptr;
  size_t chosen = 0;
  for (size_t i = 0; i < commands.size(); ++i) {
    commands[i]->AddOptions(&tables[i]);
    CLI::App* sub = AddSubcommand(&app, commands[i]->name(), commands[i]->summary());
    sub->add_option("--config", config,
                    "Read options from a file of `name = value` lines; the command line wins")
        ->type_name("FILE");
    Bind(tables[i], sub);
    sub->callback([&chosen, &chosen_app, i, sub] {
      if (chosen_app != nullptr) return;  // "bench decode" comes before its parent "bench"
      chosen = i;
      chosen_app = sub;
    });
  }
  try {
    app.parse(Arguments(argc, argv));
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  absl::Status status = ReadConfig(config, *chosen_app, tables[chosen]);
  if (status.ok()) status = commands[chosen]->Run();
  if (status.ok()) return 0;
  PrintError(status);
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace
}  // namespace oscarkv::cli

int main(int argc, char** argv) {
  // CLI11 and the standard library throw; ours does not.
  try {
    return oscarkv::cli::Main(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "oscarkv: %s\n", e.what());
    return 1;
  }
}

// The rules of the tree (docs/architecture.md): who may include whom, who may see gRPC, how long a file may be.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

/// Folder -> folders that it may include. `protos` stands for generated code. What is not listed is not allowed.
const std::map<std::string, Names>& Allowed() {
  static const std::map<std::string, Names> allowed = {
      {"common/base", {}},
      {"common/config", {"common/base"}},
      {"common/discovery", {"common/base"}},
      {"common/metrics", {"common/base"}},
      {"common/tensor", {"common/base"}},
      {"common/kernels", {"common/tensor", "common/base"}},
      {"common/loader", {"common/tensor", "common/base"}},
      {"common/tokenizer", {"common/base"}},
      {"common/kv", {"common/tensor", "common/base"}},
      {"common/sampling", {"common/base"}},
      {"common/moe", {"common/kernels", "common/tensor", "common/transport", "common/base", "common/rpc",
                      "common/cluster", "common/discovery", "protos"}},
      {"common/model", {"common/kernels", "common/kv", "common/loader", "common/moe", "common/tensor", "common/base"}},
      {"common/engine", {"common/model", "common/sampling", "common/kv", "common/base"}},
      {"common/rpc", {"common/base", "protos"}},
      {"common/transport", {"common/base", "common/rpc"}},
      {"common/process", {"common/base", "common/config"}},
      {"common/cluster", {"common/engine", "common/model", "common/kernels", "common/kv", "common/sampling",
                          "common/rpc", "common/base", "protos"}},
      {"common/worker", {"common/base", "common/cluster", "common/config", "common/discovery", "common/kernels",
                         "common/kv", "common/metrics", "common/model", "common/moe", "common/process", "common/rpc", "protos"}},
      {"client/sdk", {"protos"}},
      {"client/embedded", {"common", "router", "prefill_worker", "decode_worker"}},
      {"client/cli", {"common", "client/sdk", "client/embedded", "router", "prefill_worker", "decode_worker",
                      "expert_service"}},
      {"router", {"common", "protos"}},
      {"prefill_worker", {"common", "protos"}},
      {"decode_worker", {"common", "protos"}},
      {"expert_service", {"common", "protos"}},
      {"bench", {"common", "client"}},
  };
  return allowed;
}

/// Folders that never see gRPC or protobuf.
const Names kNoRpc = {"common/base",    "common/tensor",   "common/kernels", "common/loader", "common/tokenizer",
                      "common/kv",      "common/sampling", "common/model",   "common/engine", "common/config",
                      "common/metrics", "common/process",  "common/discovery"};

constexpr size_t kMaxLines = 600;

std::string FolderOf(const std::string& path) {
  std::string best;
  for (const auto& [folder, unused] : Allowed())
    if (path.starts_with(folder + "/") && folder.size() > best.size()) best = folder;
  return best;
}

bool May(const std::string& from, const std::string& to) {
  if (from == to) return true;
  for (const std::string& allowed : Allowed().at(from))
    if (to == allowed || to.starts_with(allowed + "/")) return true;
  return false;
}

struct Source {
  std::string path;  // from the root
  std::vector<std::string> lines;
};

std::vector<Source> Sources() {
  std::vector<Source> sources;
  const fs::path root = CACHALOT_SOURCE_DIR;
  for (const char* top : {"common", "router", "prefill_worker", "decode_worker", "expert_service", "client", "bench",
                          "tests"})
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc") continue;
      Source source{fs::relative(entry.path(), root), {}};
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);) source.lines.push_back(line);
      sources.push_back(std::move(source));
    }
  return sources;
}

TEST(Architecture, DependenciesPointDownward) {
  const std::regex include("^\\s*#\\s*include\\s*[\"<]([^\">]+)[\">]");
  for (const Source& source : Sources()) {
    const std::string from = FolderOf(source.path);
    if (source.path.starts_with("tests/")) continue;
    ASSERT_FALSE(from.empty()) << source.path << " lies in a folder without a rule: add one";
    for (const std::string& line : source.lines) {
      std::smatch match;
      if (!std::regex_search(line, match, include)) continue;
      const std::string target = match[1];
      const bool generated = target.starts_with("cachalot/v1/") || target.starts_with("grpc/health/");
      const bool rpc = generated || target.starts_with("grpc") || target.starts_with("google/protobuf");
      if (kNoRpc.contains(from)) {
        EXPECT_FALSE(rpc) << source.path << " sees gRPC or protobuf: " << target;
      }
      const std::string to = generated ? "protos" : FolderOf(target);
      if (!to.empty()) {
        EXPECT_TRUE(May(from, to)) << source.path << " includes " << target;
      }
    }
  }
}

/// moe is one folder with two layers: the plan and the arithmetic below the model, the remote back end above it.
TEST(Architecture, ThePlanAndTheArithmeticOfExpertsSeeNoRpc) {
  for (const Source& source : Sources()) {
    const std::string name = fs::path(source.path).stem();
    if (!source.path.starts_with("common/moe/")) continue;
    if (name != "dispatch_plan" && name != "expert_ffn" && name != "expert_backend" && name != "local_experts" &&
        name != "expert_matrices" && name != "expert_frame" && name != "split_plan")
      continue;
    for (const std::string& line : source.lines)
      if (line.starts_with("#include")) {
        EXPECT_TRUE(line.find("grpc") == std::string::npos && line.find("common/rpc") == std::string::npos &&
                    line.find("cachalot/v1") == std::string::npos)
            << source.path << ": " << line;
      }
  }
}

TEST(Architecture, FilesStayReadable) {
  for (const Source& source : Sources()) EXPECT_LE(source.lines.size(), kMaxLines) << source.path;
}

TEST(Architecture, TheEnvironmentIsReadInOnePlaceOnly) {
  const std::regex environment("\\bgetenv\\s*\\(");
  for (const Source& source : Sources()) {
    if (source.path.starts_with("tests/") || source.path.starts_with("common/config/") ||
        source.path.starts_with("common/process/")) continue;
    for (const std::string& line : source.lines) EXPECT_FALSE(std::regex_search(line, environment)) << source.path;
  }
}

/// `Suite.Name` of every test in the sources.
Names Tests() {
  const std::regex test("^\\s*TEST(?:_F|_P)?\\(\\s*(\\w+)\\s*,\\s*(\\w+)\\s*\\)");
  Names tests;
  for (const Source& source : Sources())
    for (const std::string& line : source.lines) {
      std::smatch match;
      if (std::regex_search(line, match, test)) tests.insert(match[1].str() + "." + match[2].str());
    }
  return tests;
}

/// docs/errors.md says in the last column of every row which tests check it.
TEST(Docs, EveryErrorHasATestThatIsThere) {
  const Names tests = Tests();
  const std::regex row("^\\|.*\\|([^|]*)\\|$"), name("`(\\w+\\.\\w+)`");
  std::ifstream in(fs::path(CACHALOT_SOURCE_DIR) / "docs/errors.md");
  size_t in_table = 0, rows = 0;
  for (std::string line; std::getline(in, line);) {
    in_table = line.starts_with('|') ? in_table + 1 : 0;
    std::smatch match;
    if (in_table == 1) {
      EXPECT_TRUE(line.ends_with("| test |")) << line;
    }
    if (in_table <= 2) continue;
    ++rows;
    ASSERT_TRUE(std::regex_match(line, match, row)) << line;
    const std::string cell = match[1];
    const std::sregex_iterator named(cell.begin(), cell.end(), name), end;
    EXPECT_NE(named, end) << "a row without a test: " << line;
    for (auto at = named; at != end; ++at) EXPECT_TRUE(tests.contains((*at)[1])) << "no such test: " << (*at)[1];
  }
  EXPECT_GT(rows, 50u) << "the tables are not read";
}

}  // namespace

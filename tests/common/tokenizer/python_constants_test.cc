#include "common/tokenizer/python_constants.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cachalot {
namespace {

/// The string that `source` gives to X, or "none".
std::string X(std::string_view source) {
  const PythonConstants constants = PythonConstants::Parse(source);
  const std::string* text = constants.FindString("X");
  return text == nullptr ? "none" : *text;
}

TEST(PythonConstantsTest, Literals) {
  EXPECT_EQ(X("X = 'a'"), "a");
  EXPECT_EQ(X("X=\"it's\"  # a comment"), "it's");
  EXPECT_EQ(X("X: str = ''"), "");
  EXPECT_EQ(X("X = '''a\n'b' \"\"c'''\n"), "a\n'b' \"\"c");
  EXPECT_EQ(X("X = \"\"\"a\\\nb\"\"\"\r\n"), "ab");
  EXPECT_EQ(X("X = \"\"\"a\r\nb\rc\"\"\"\r\n"), "a\nb\nc");
  EXPECT_EQ(X("X = u'é' R'\\n\\'' \"\""), "é\\n\\'");
  EXPECT_EQ(X("X: Dict[str, str] = 'a'"), "a");
}

TEST(PythonConstantsTest, Escapes) {
  EXPECT_EQ(X(R"py(X = "\n\t\\\"\'\r\a\b\f\v")py"), "\n\t\\\"'\r\a\b\f\v");
  EXPECT_EQ(X(R"py(X = "\x41\u2014\U0001F600\101\7z\q\8")py"), "A—😀A\az\\q\\8");
  EXPECT_EQ(X(R"py(X = "\ud800")py"), "none");
  EXPECT_EQ(X(R"py(X = "\N{DASH}")py"), "none");
  EXPECT_EQ(X(R"py(X = "\x4")py"), "none");
}

TEST(PythonConstantsTest, Concatenation) {
  EXPECT_EQ(X("X = 'a' \"b\" '''c'''"), "abc");
  EXPECT_EQ(X("X = (\n    'a\\n'  # one\n\n    # two\n    \"b\"\n)\n"), "a\nb");
  EXPECT_EQ(X("Y = 'y'\nX = ('a' + Y) + \\\n  'b' 'c'"), "aybc");
  EXPECT_EQ(X("X = 'a'\nX = 'b'"), "b");
  EXPECT_EQ(X("X = 'a'\nX = 'b' + f('c')"), "a");
}

TEST(PythonConstantsTest, OtherThingsDefineNothing) {
  for (const char* source : {"X = f'a'",
                             "X = b'a'",
                             "X = 'a'.upper()",
                             "X = Y",
                             "X = ('a', 'b')",
                             "X = 'a', 'b'",
                             "X == 'a'",
                             "X += 'a'",
                             "  X = 'a'",
                             "def f():\n    X = 'a'\n",
                             "'''\nX = 'a'\n'''",
                             "y = (\nX == 'a')",
                             "# X = 'a'",
                             "f(\nX = 'a')",
                             "X = 'a",
                             "X = '''a",
                             "X = ('a'",
                             "X =",
                             "X",
                             "X:",
                             "s = 'it\\'s'; X = 'a'",
                             "XX = 'a'",
                             "X = 'a' if b else 'c'"}) {
    EXPECT_EQ(X(source), "none") << source;
  }
  EXPECT_EQ(X("X = " + std::string(100'000, '(')), "none");
}

TEST(PythonConstantsTest, FindsItsWayPastEverythingElse) {
  EXPECT_EQ(
      X("import re\nP = re.compile(r\"\"\"[\"']\\\\\"\"\", re.X)\n\n\nclass A:\n    '''doc: X = \"no\" '''\n"
        "    def f(self, x={'a': [1, 2]}):\n        return f\"{x['a']}\" # it's\n\nX = 'yes'\n"),
      "yes");
}

TEST(PythonConstantsTest, Dicts) {
  const auto dict = [](std::string_view source) -> PythonConstants::Dict {
    const PythonConstants constants = PythonConstants::Parse(source);
    const PythonConstants::Dict* found = constants.FindDict("X");
    return found == nullptr ? PythonConstants::Dict{{"none", ""}} : *found;
  };
  using testing::ElementsAre;
  using testing::Pair;
  EXPECT_THAT(dict("T = 't'\nX: Dict[str, str] = {\n  # levels\n  \"low\": \"\",\n  'high': (\n    'a'\n    "
                   "'b'\n  ),\n"
                   "  'max': T + 'c',\n}\n"),
              ElementsAre(Pair("low", ""), Pair("high", "ab"), Pair("max", "tc")));
  EXPECT_THAT(dict("X = {}"), ElementsAre());
  EXPECT_THAT(dict("X = {'a': 1}"), ElementsAre(Pair("none", "")));
  EXPECT_THAT(dict("X = {'a': 'b'"), ElementsAre(Pair("none", "")));
  EXPECT_THAT(dict("X = {'a', 'b'}"), ElementsAre(Pair("none", "")));
}

}  // namespace
}  // namespace cachalot

#include "common/loader/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>

#include "tests/common/loader/tensor_files.h"

namespace cachalot {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::ReadTensors;
using testing::SafetensorsImage;
using testing::TempDir;
using testing::WriteText;

class SafetensorsTest : public ::testing::Test {
 protected:
  /// Opens a file with this image and returns the refusal, "" if there is none.
  std::string Refusal(const std::string& image) {
    const std::string path = directory_ / "broken.safetensors";
    WriteText(path, image);
    const auto file = SafetensorsFile::Open(path);
    if (file.ok()) return "";
    EXPECT_EQ(file.status().code(), StatusCode::kDataLoss);
    EXPECT_THAT(StatusMessage(file.status()), HasSubstr(path));
    return StatusMessage(file.status());
  }
  std::string RefusalOf(const std::string& header, size_t data_bytes) {
    return Refusal(SafetensorsImage(header, std::string(data_bytes, 'd')));
  }

  TempDir directory_;
};

std::string Length(uint64_t length) { return {reinterpret_cast<const char*>(&length), 8}; }

TEST_F(SafetensorsTest, WhatIsWrittenIsRead) {
  const std::vector<float> logits = {1.5f, -2, 3, 0, 1e-30f, 7};
  const std::vector<int32_t> ids = {4, -5};
  SafetensorsWriter writer;
  writer.Add("logits", {2, 3}, logits);
  writer.Add("ids", {2}, ids);
  writer.Add("none", {0, 7}, std::span<const float>{});
  const std::string path = directory_ / "out.safetensors";
  ASSERT_TRUE(writer.Write(path).ok());
  ASSERT_TRUE(writer.Write(path).ok());  // replaces the file

  auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << StatusMessage(file.status());
  EXPECT_FALSE((*file)->mapped());
  ASSERT_TRUE((*file)->Map().ok());
  const SafetensorsEntry* entry = (*file)->Find("logits");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->dtype, "F32");
  EXPECT_THAT(entry->shape, ElementsAre(2, 3));
  const std::span<const std::byte> bytes = (*file)->Bytes(*entry);
  ASSERT_EQ(bytes.size(), 24u);
  EXPECT_EQ(std::memcmp(bytes.data(), logits.data(), 24), 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % 8, 0u);
  entry = (*file)->Find("ids");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->dtype, "I32");
  EXPECT_EQ(std::memcmp((*file)->Bytes(*entry).data(), ids.data(), 8), 0);
  EXPECT_EQ((*file)->Find("nothing"), nullptr);

  std::vector<std::byte> part(8);
  ASSERT_TRUE((*file)->ReadAt(entry->begin, part).ok());
  EXPECT_EQ(std::memcmp(part.data(), ids.data(), 8), 0);
  EXPECT_EQ((*file)->ReadAt(entry->end - 4, part).code(), StatusCode::kDataLoss);
}

TEST_F(SafetensorsTest, AcceptsMetadataPaddingAndScalars) {
  EXPECT_EQ(
      RefusalOf(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}    )",
                4),
      "");
  EXPECT_EQ(RefusalOf("{}", 0), "");
  EXPECT_EQ(RefusalOf(R"({"gap":{"dtype":"I8","shape":[1],"data_offsets":[3,4]}})", 9), "");
}

TEST_F(SafetensorsTest, RefusesBrokenHeaders) {
  EXPECT_THAT(Refusal(""), HasSubstr("wanted at least 8 bytes"));
  EXPECT_THAT(Refusal("abc"), HasSubstr("got a file of 3"));
  EXPECT_THAT(Refusal(Length(10) + "{}"),
              AllOf(HasSubstr("wanted at most the 2 bytes"), HasSubstr("got 10")));
  EXPECT_THAT(Refusal(Length(kMaxSafetensorsHeader + 1) + "{}"), HasSubstr("wanted at most 100000000"));
  EXPECT_THAT(Refusal(Length(~uint64_t{0}) + "{}"), HasSubstr("got 18446744073709551615"));
  EXPECT_THAT(RefusalOf("", 0), HasSubstr("not JSON"));
  EXPECT_THAT(RefusalOf(R"({"a":)", 0), HasSubstr("not JSON"));
  EXPECT_THAT(RefusalOf("{} {}", 0), HasSubstr("not JSON"));
  EXPECT_THAT(RefusalOf("{\"\xff\":1}", 0), HasSubstr("not JSON"));
  EXPECT_THAT(RefusalOf("[1]", 0), HasSubstr("wanted a JSON object, got array"));
  EXPECT_THAT(RefusalOf(R"({"__metadata__":7})", 0), HasSubstr("__metadata__"));
  EXPECT_THAT(RefusalOf("{\"a\":" + std::string(200000, '[') + std::string(200000, ']') + "}", 0),
              HasSubstr("levels of nesting"));
}

TEST_F(SafetensorsTest, RefusesBrokenEntries) {
  const auto entry = [this](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return RefusalOf(
        R"({"t":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}", 16);
  };
  EXPECT_EQ(entry("\"F32\"", "[2,2]", "[0,16]"), "");
  EXPECT_THAT(entry("\"F33\"", "[4]", "[0,16]"),
              AllOf(HasSubstr("tensor 't'"), HasSubstr("known dtype, got \"F33\"")));
  EXPECT_THAT(entry("4", "[4]", "[0,16]"), HasSubstr("known dtype, got 4"));
  EXPECT_THAT(entry("\"F32\"", "[-4]", "[0,16]"), HasSubstr("non-negative integers"));
  EXPECT_THAT(entry("\"F32\"", "[4.0]", "[0,16]"), HasSubstr("non-negative integers"));
  EXPECT_THAT(entry("\"F32\"", "4", "[0,16]"), HasSubstr("non-negative integers"));
  EXPECT_THAT(entry("\"F32\"", "[4294967296,4294967296]", "[0,16]"), HasSubstr("fit 63 bits"));
  EXPECT_THAT(entry("\"F32\"", "[1152921504606846976]", "[0,16]"), HasSubstr("fit 63 bits"));
  EXPECT_THAT(entry("\"F32\"", "[18446744073709551615]", "[0,16]"), HasSubstr("fit 63 bits"));
  EXPECT_THAT(entry("\"F32\"", "[5]", "[0,16]"),
              AllOf(HasSubstr("wanted 20 bytes for F32[5]"), HasSubstr("got 16")));
  EXPECT_THAT(entry("\"BF16\"", "[4]", "[0,16]"), HasSubstr("wanted 8 bytes for BF16[4]"));
  EXPECT_THAT(entry("\"F32\"", "[5]", "[0,20]"), AllOf(HasSubstr("inside [0, 16]"), HasSubstr("got [0,20]")));
  EXPECT_THAT(entry("\"F32\"", "[0]", "[17,17]"), HasSubstr("inside [0, 16]"));
  EXPECT_THAT(entry("\"F32\"", "[4]", "[16,0]"), HasSubstr("inside [0, 16]"));
  EXPECT_THAT(entry("\"F32\"", "[4]", "[-1,15]"), HasSubstr("wanted data_offsets"));
  EXPECT_THAT(entry("\"F32\"", "[4]", "[0]"), HasSubstr("wanted data_offsets"));
  EXPECT_THAT(RefusalOf(R"({"t":{"dtype":"F32","shape":[4]}})", 16),
              HasSubstr("dtype, shape and data_offsets"));
  EXPECT_THAT(RefusalOf(R"({"t":[]})", 0), HasSubstr("tensor 't'"));
}

TEST_F(SafetensorsTest, RefusesOverlapsAndDuplicates) {
  EXPECT_THAT(RefusalOf(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                        R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                        12),
              AllOf(HasSubstr("tensor 'b'"), HasSubstr("the end of 'a'")));
  EXPECT_THAT(RefusalOf(R"({"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},)"
                        R"("a":{"dtype":"I8","shape":[1],"data_offsets":[1,2]}})",
                        2),
              HasSubstr("header: duplicate name 'a'"));
  EXPECT_THAT(RefusalOf(R"({"a":{"dtype":"I8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
              HasSubstr("duplicate name 'dtype'"));
}

TEST_F(SafetensorsTest, EveryTruncationOfAGoodFileIsRefused) {
  const std::string image =
      SafetensorsImage(R"({"t":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}})", "12345");
  EXPECT_EQ(Refusal(image), "");
  for (size_t size = 0; size < image.size(); ++size) EXPECT_NE(Refusal(image.substr(0, size)), "") << size;
}

TEST_F(SafetensorsTest, NoFileAndNoRegularFile) {
  EXPECT_EQ(SafetensorsFile::Open(directory_ / "nothing").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(directory_.path()).status().code(), StatusCode::kDataLoss);
}

TEST_F(SafetensorsTest, AFailedWriteSaysSoAndLeavesTheOldFile) {
  const std::string path = directory_ / "out.safetensors";
  const std::vector<float> small = {1}, large(1 << 16);
  SafetensorsWriter old, next;
  old.Add("x", {1}, small);
  next.Add("x", {1 << 16}, large);
  ASSERT_TRUE(old.Write(path).ok());

  // A limit on the file size stands in for a full disk: both cut a write short.
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit tight{100000, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  const Status status = next.Write(path);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(StatusMessage(status), HasSubstr(path));
  EXPECT_EQ(ReadTensors(path).at("x").shape, std::vector<int64_t>{1});
  int files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory_.path())) ++files;
  EXPECT_EQ(files, 1);

  EXPECT_EQ(old.Write(directory_ / "no/such/out.safetensors").code(), StatusCode::kNotFound);
  EXPECT_EQ(old.Write(directory_.path()).code(), StatusCode::kFailedPrecondition) << "a directory";
}

TEST_F(SafetensorsTest, TheWritersMisuseIsABug) {
  const std::vector<float> data = {1, 2};
  SafetensorsWriter writer;
  writer.Add("x", {2}, data);
  EXPECT_DEATH(writer.Add("y", {3}, data), "y");
  EXPECT_DEATH(writer.Add("x", {2}, data), "twice");
}

}  // namespace
}  // namespace cachalot

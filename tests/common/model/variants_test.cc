// Every variant of model.md 7.3 runs to the same bits as the checkpoint that it was made from.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "common/model/weights_summary.h"
#include "tests/common/model/checkpoint_variants.h"
#include "tests/common/model/test_engine.h"
#include "tests/support/oracle.h"

namespace cachalot {
namespace {

using ::testing::HasSubstr;
using testing::StackAs;
using testing::StoredTensor;
using testing::StoredTensors;
using testing::TempDir;

struct Source {
  const char* directory;
  int layers, experts;
  int64_t hidden;

  std::string path() const { return testing::Source(std::string("tests/golden/oracle/") + directory); }
  StoredTensors Tensors() const {  // with released names
    StoredTensors stored = testing::ReadTensors(path() + "/model.safetensors");
    return stored.contains("embed.weight") ? stored : testing::Released(stored);
  }
};

constexpr Source kTiny = {"tiny", 6, 16, 64}, kFlash = {"flash-fp4-fp8", 4, 32, 256};

struct Variant {
  const char* name;
  Source source;
  NameScheme scheme;
  std::function<StoredTensors(const StoredTensors&)> make;
};

/// MTP tensors of the right look under `prefix`; the loader must not even read them.
StoredTensors WithDraft(StoredTensors tensors, const std::string& prefix,
                        const std::vector<std::string>& names) {
  for (const std::string& name : names) tensors[prefix + name] = {"BF16", {4}, std::string(8, '\xff')};
  return tensors;
}
const std::vector<std::string> kMtpNames = {
    "e_proj.weight", "h_proj.weight",   "enorm.weight",   "hnorm.weight",  "norm.weight",
    "hc_head_fn",    "attn.wkv.weight", "attn.attn_sink", "ffn.gate.bias", "ffn.experts.0.w1.weight"};

StoredTensors WithHashBias(StoredTensors tensors, const std::string& name, int experts) {
  tensors[name] = {"F32", {experts}, std::string(experts * 4, '\xff')};  // NaN: must not be used
  return tensors;
}

StoredTensors OlderIndexer(const StoredTensors& tensors) {
  return testing::Renamed(
      tensors, [](const std::string& name) { return testing::Swap(name, "indexer.scorer.", "indexer."); });
}

std::vector<Variant> Variants() {
  using namespace testing;  // NOLINT: the functions of checkpoint_variants.h
  const auto runtime = [](Source source, StackAs as) {
    return [=](const StoredTensors& t) { return Runtime(t, source.layers, source.experts, as); };
  };
  return {
      {"TinyReleased", kTiny, NameScheme::kReleased, [](auto& t) { return t; }},
      {"TinyConverted", kTiny, NameScheme::kConverted, [](auto& t) { return Converted(t); }},
      {"TinyRuntimeBF16", kTiny, NameScheme::kRuntime, runtime(kTiny, StackAs::kBF16)},
      {"TinyRuntimeF32", kTiny, NameScheme::kRuntime,
       [](auto& t) { return Runtime(Dequantised(t, false), 6, 16, StackAs::kF32); }},
      {"TinyRuntimeOlderIndexer", kTiny, NameScheme::kRuntime,
       [](auto& t) { return OlderIndexer(Runtime(t, 6, 16, StackAs::kBF16)); }},
      {"TinyInt32Tables", kTiny, NameScheme::kSavePretrained,
       [](auto& t) { return NarrowTables(SavePretrained(t)); }},
      {"TinyHashBias", kTiny, NameScheme::kReleased,
       [](auto& t) { return WithHashBias(t, "layers.1.ffn.gate.bias", 16); }},
      {"TinyRuntimeHashBias", kTiny, NameScheme::kRuntime,
       [](auto& t) {
         return WithHashBias(Runtime(t, 6, 16, StackAs::kBF16),
                             "model.layers.0.mlp.gate.e_score_correction_bias", 16);
       }},
      {"TinyMtp", kTiny, NameScheme::kReleased, [](auto& t) { return WithDraft(t, "mtp.0.", kMtpNames); }},
      {"TinyModelMtp", kTiny, NameScheme::kConverted,
       [](auto& t) { return WithDraft(t, "model.mtp.0.", kMtpNames); }},
      {"TinyMtpAsLayer", kTiny, NameScheme::kReleased,
       [](auto& t) { return WithDraft(t, "layers.6.", kMtpNames); }},
      {"TinyMtpAsModelLayer", kTiny, NameScheme::kSavePretrained,
       [](auto& t) { return WithDraft(SavePretrained(t), "model.layers.6.", kMtpNames); }},
      {"TinyDSpark", kTiny, NameScheme::kReleased,
       [](auto& t) {
         return WithDraft(t, "mtp.0.", {"markov_head.w1.weight", "attn.wkv.weight"});
       }},
      {"FlashConverted", kFlash, NameScheme::kConverted, [](auto& t) { return Converted(t); }},
      {"FlashSavePretrainedBF16", kFlash, NameScheme::kSavePretrained,
       [](auto& t) { return SavePretrained(Dequantised(t, true)); }},
      {"FlashRuntimeBF16Experts", kFlash, NameScheme::kRuntime, runtime(kFlash, StackAs::kBF16)},
      {"FlashRuntimeAllBF16", kFlash, NameScheme::kRuntime,
       [](auto& t) { return Runtime(Dequantised(t, true), 4, 32, StackAs::kBF16); }},
      {"FlashRuntimeFP8Experts", kFlash, NameScheme::kRuntime, runtime(kFlash, StackAs::kFp8)},
      {"FlashRuntimeFP8F32Scale", kFlash, NameScheme::kRuntime,
       [](auto& t) { return Runtime(WideDenseScales(t), 4, 32, StackAs::kFp8F32Scale); }},
      {"FlashRuntimeFP4Stack", kFlash, NameScheme::kRuntime, runtime(kFlash, StackAs::kAsStored)},
      {"FlashBaseE8M0", kFlash, NameScheme::kReleased, [](auto& t) { return Fp8Experts(t, false); }},
      {"FlashBaseF32", kFlash, NameScheme::kReleased,
       [](auto& t) { return Fp8Experts(WideDenseScales(t), true); }},
      {"FlashBaseConverted", kFlash, NameScheme::kConverted,
       [](auto& t) { return Converted(NarrowTables(Fp8Experts(t, true))); }},
  };
}

void Write(const TempDir& directory, const Source& source, const StoredTensors& tensors) {
  testing::WriteTensors(directory / "model.safetensors", tensors);
  testing::WriteText(directory / "config.json", testing::ReadText(source.path() + "/config.json"));
}

std::vector<int32_t> Ids(const Source& source) {
  std::vector<int32_t> ids = testing::OracleCase::Load(source.path())->input_ids;
  ids.resize(std::min<size_t>(ids.size(), 140));  // one row of ratio 128, several choices of the indexer
  return ids;
}

/// Of every id, in exact mode on the fastest back end; the directory must load.
std::vector<float> Logits(const std::string& directory, std::span<const int32_t> ids) {
  const auto* cpu = kernels::CpuKernels();
  testing::TestEngine engine(directory, cpu ? *cpu : kernels::RefKernels());
  SequenceKv kv = engine.NewSequence(static_cast<int64_t>(ids.size()));
  return engine.Run(kv, ids, 64);
}

std::shared_ptr<const ModelWeights> LoadAll(const std::string& directory) {
  auto weights = ModelWeights::Load(directory, WeightSelection::All());
  EXPECT_TRUE(weights.ok()) << StatusMessage(weights.status());
  return weights.ok() ? *weights : nullptr;
}

/// Logits of the original, computed once.
const std::vector<float>& Original(const Source& source) {
  static std::map<std::string, std::vector<float>> known;
  auto& logits = known[source.directory];
  if (logits.empty()) logits = Logits(source.path(), Ids(source));
  return logits;
}

class VariantTest : public ::testing::TestWithParam<Variant> {};

TEST_P(VariantTest, RunsToTheSameBits) {
  const Variant& variant = GetParam();
  TempDir directory;
  Write(directory, variant.source, variant.make(variant.source.Tensors()));
  const auto weights = LoadAll(directory.path());
  ASSERT_NE(weights, nullptr);
  EXPECT_EQ(Logits(directory.path(), Ids(variant.source)), Original(variant.source));

  const auto checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok());
  const CheckpointSummary summary = InspectCheckpoint(weights->config, **checkpoint);
  EXPECT_EQ(NameSchemeText(summary.names), NameSchemeText(variant.scheme));
  EXPECT_TRUE(summary.refusals.empty()) << summary.refusals[0];
  EXPECT_TRUE(summary.unexpected.empty()) << summary.unexpected[0];
  EXPECT_EQ((*checkpoint)->MappedFiles(), 0);
}

INSTANTIATE_TEST_SUITE_P(Spec, VariantTest, ::testing::ValuesIn(Variants()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(VariantsTest, StackedExpertsAreMappedByRole) {
  for (StackAs as : {StackAs::kBF16, StackAs::kFp8}) {
    TempDir directory;
    Write(directory, kFlash, testing::Runtime(kFlash.Tensors(), 4, 32, as));
    const auto mapped = [&](const WeightSelection& selection) {
      const auto weights = ModelWeights::Load(directory.path(), selection);
      EXPECT_TRUE(weights.ok()) << StatusMessage(weights.status());
      return (*weights)->checkpoint->MappedBytes();
    };
    const int64_t all = mapped(WeightSelection::All()), dense = mapped(WeightSelection::DenseOnly());
    EXPECT_EQ(mapped(WeightSelection::Experts(4, 12)) * 4, all - dense);
    EXPECT_EQ(mapped(WeightSelection::Experts(0, 0)), 0);
  }
}

TEST(VariantsTest, MisalignedStacksAreCopiedExpertByExpert) {
  TempDir directory;
  testing::WriteTensors(directory / "model.safetensors",
                        testing::Runtime(kTiny.Tensors(), 6, 16, StackAs::kBF16), 1);
  testing::WriteText(directory / "config.json", testing::ReadText(kTiny.path() + "/config.json"));
  const auto weights = LoadAll(directory.path());
  ASSERT_NE(weights, nullptr);
  EXPECT_EQ(Logits(directory.path(), Ids(kTiny)), Original(kTiny));
}

/// The refusal of a checkpoint made of `tensors`; "" if it loads.
std::string Refusal(const Source& source, const StoredTensors& tensors) {
  TempDir directory;
  Write(directory, source, tensors);
  const auto weights = ModelWeights::Load(directory.path(), WeightSelection::All());
  return weights.ok() ? "" : StatusMessage(weights.status());
}

TEST(VariantsTest, RefusesBrokenStacks) {
  const StoredTensors fp8 = testing::Runtime(kFlash.Tensors(), 4, 32, StackAs::kFp8);
  const auto broken = [&](const std::function<void(StoredTensors&)>& edit) {
    StoredTensors copy = fp8;
    edit(copy);
    return Refusal(kFlash, copy);
  };
  const std::string both = "model.layers.2.mlp.experts.gate_up_proj",
                    down = "model.layers.2.mlp.experts.down_proj";
  EXPECT_THAT(broken([&](auto& t) {
                t.at(both).shape = {32, 256, 128};
              }),
              ::testing::AllOf(HasSubstr(both), HasSubstr("wanted shape [32, 128, 256]"),
                               HasSubstr("[32, 256, 128]")));
  EXPECT_THAT(broken([&](auto& t) { t.erase(down); }), HasSubstr("layers.2.ffn.experts.down_proj"));
  EXPECT_THAT(broken([&](auto& t) { t.erase(both + "_scale_inv"); }),
              HasSubstr("layers.2.ffn.experts.gate_up_proj.scale"));
  EXPECT_THAT(broken([&](auto& t) { t.at(both + "_scale_inv").bytes.back() = '\xff'; }),
              ::testing::AllOf(HasSubstr(both + "_scale_inv"), HasSubstr("255")));
}

TEST(VariantsTest, RefusesAScheduleOfOtherLayers) {
  // An indexer where the config says HCA, a compressor where it says window (model.md 7.4, 11.9), a table where
  // it routes by score. Shapes agree with the config in each case, so nothing else would notice.
  const auto with = [](const std::string& name, const StoredTensor& tensor) {
    StoredTensors tensors = kTiny.Tensors();
    tensors[name] = tensor;
    return Refusal(kTiny, tensors);
  };
  const StoredTensor some = {"F32", {1}, std::string(4, '\0')};
  EXPECT_THAT(
      with("layers.5.attn.indexer.wq_b.weight", some),
      ::testing::AllOf(HasSubstr("model.safetensors: tensor 'layers.5.attn.indexer.wq_b.weight'"),
                       HasSubstr("wanted no indexer in a layer of ratio 128 of the config, got one")));
  EXPECT_THAT(with("layers.1.attn.compressor.ape", some),
              HasSubstr("wanted no compressor in a layer of ratio 0"));
  EXPECT_THAT(with("layers.3.ffn.gate.tid2eid", some), HasSubstr("layers.3.ffn.gate.tid2eid"));
}

TEST(VariantsTest, DraftsAreTold) {
  const auto summary = [](const StoredTensors& tensors) {
    TempDir directory;
    Write(directory, kTiny, tensors);
    return InspectCheckpoint(*ModelConfig::Load(directory.path()), **Checkpoint::Open(directory.path()));
  };
  const StoredTensors plain = kTiny.Tensors();
  const auto count = [](const CheckpointSummary& s) { return s.group(TensorGroupId::kMtp).tensors; };
  const auto none = summary(plain), mtp = summary(WithDraft(plain, "mtp.0.", kMtpNames)),
             layer = summary(WithDraft(plain, "model.layers.6.", kMtpNames)),
             dspark = summary(WithDraft(plain, "mtp.0.", {"markov_head.w1.weight", "attn.wkv.weight"})),
             // No MTP: more layers than the config has.
      longer = summary(WithDraft(plain, "layers.6.", {"attn.wkv.weight"}));
  EXPECT_EQ(count(none), 0);
  EXPECT_EQ(count(mtp), 10);
  EXPECT_EQ(count(layer), 10);
  EXPECT_EQ(count(dspark), 2);
  EXPECT_EQ(count(longer), 0);
  EXPECT_EQ(longer.unexpected, std::vector<std::string>{"layers.6.attn.wkv.weight"});
  EXPECT_TRUE(dspark.dspark);
  EXPECT_FALSE(mtp.dspark || layer.dspark);
  EXPECT_EQ(none.MainParameters(), mtp.MainParameters());

  TempDir directory;
  Write(directory, kTiny, WithDraft(plain, "mtp.0.", {"markov_head.w1.weight"}));
  ::testing::internal::CaptureStdout();
  EXPECT_NE(LoadAll(directory.path()), nullptr);
  EXPECT_THAT(::testing::internal::GetCapturedStdout(), HasSubstr("1 tensors of a DSpark draft are ignored"));
}

}  // namespace
}  // namespace cachalot

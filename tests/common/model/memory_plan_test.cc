// What a checkpoint holds and needs, by its headers: against the numbers of model.md 1.3, 4 and 7.1, and against
// what loading really maps.

#include "common/model/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "common/model/forward.h"
#include "common/model/weights.h"
#include "tests/common/model/flash_table.h"

namespace cachalot {
namespace {

using testing::FlashTable;
using testing::TempDir;

struct Inspected {
  ModelConfig config;
  CheckpointSummary summary;
};

Inspected Inspect(const std::string& directory) {
  const auto config = ModelConfig::Load(directory);
  const auto checkpoint = Checkpoint::Open(directory);
  EXPECT_TRUE(config.ok() && checkpoint.ok()) << directory;
  return {*config, InspectCheckpoint(*config, **checkpoint)};
}

TEST(MemoryPlanTest, TheReleasedFlashTable) {
  TempDir directory;
  FlashTable::WriteSparse(directory);
  const auto [config, summary] = Inspect(directory.path());
  EXPECT_THAT(summary.refusals, ::testing::IsEmpty());
  EXPECT_THAT(summary.unexpected, ::testing::IsEmpty());
  EXPECT_EQ(summary.names, NameScheme::kReleased);
  EXPECT_FALSE(summary.dspark || summary.stacked_experts);
  EXPECT_EQ(summary.files, 46);

  // model.md 7.1; model.md 1.3 counts FP4 pairs twice, gate.bias as parameters, scales and tid2eid not.
  EXPECT_EQ(summary.Total().tensors, 69187);
  EXPECT_EQ(summary.Total().bytes, 159609485896);
  EXPECT_EQ(summary.MainParameters(), 284332240471);
  EXPECT_EQ(summary.MainParameters() - 40 * 256, 284332230231);  // without the router's biases
  EXPECT_EQ(summary.group(TensorGroupId::kMtp).parameters, 6610048891);

  const auto bytes = [&](TensorGroupId id) { return summary.group(id).bytes; };
  EXPECT_EQ(bytes(TensorGroupId::kRouted), int64_t{43} * 256 * 13369344);
  EXPECT_EQ(bytes(TensorGroupId::kEmbedHead), int64_t{2} * 129280 * 4096 * 2);
  EXPECT_EQ(bytes(TensorGroupId::kTables), int64_t{3} * 129280 * 6 * 8);
  EXPECT_NEAR(static_cast<double>(bytes(TensorGroupId::kMtp)), 3.594e9, 0.5e6);
  EXPECT_NEAR(static_cast<double>(bytes(TensorGroupId::kAttention) + bytes(TensorGroupId::kShared) +
                                  bytes(TensorGroupId::kRouter) + bytes(TensorGroupId::kNorms)),
              6.709e9, 0.5e6);

  const WeightPlan plan = PlanWeights(config, summary, 8);
  EXPECT_THAT(plan.shards, ::testing::Each(int64_t{43} * 32 * 13369344));
  EXPECT_EQ(plan.embedded + bytes(TensorGroupId::kMtp), summary.Total().bytes);
  EXPECT_EQ(plan.dense + 8 * plan.shards[0], plan.embedded);
}

TEST(MemoryPlanTest, FlashKvIsTheTableOfTheSpec) {
  const ModelConfig config = *ModelConfig::Parse(FlashTable::Config().dump(), "config.json");
  const KvPlan plan = PlanKv(config, 131072);
  EXPECT_EQ(plan.bf16.per_token, 6880);  // model.md 4.3
  EXPECT_EQ(plan.fp32.per_token, 2 * 6880);
  EXPECT_EQ(plan.bf16.window, 5636096);
  EXPECT_EQ(plan.bf16.state, 12206080);
  EXPECT_EQ(plan.fp32.state, 12206080);
  EXPECT_EQ(plan.bf16_formula, "21*(512+128)*2/4 + 20*512*2/128");
  const struct {
    int64_t tokens, full, minimal;
  } table[] = {{1024, 24887296, 13111296},
               {32768, 243286016, 231510016},
               {131072, 919617536, 907841536},
               {1048576, 7232045056, 7220269056}};  // model.md 4.5
  for (const auto& row : table) {
    const KvPlan at = PlanKv(config, row.tokens);
    EXPECT_EQ(at.bf16_rows, row.full);
    EXPECT_EQ(at.bf16_minimal, row.minimal);
    EXPECT_EQ(at.bf16.total, row.full);  // multiples of a block
    EXPECT_EQ(at.fp32.total, KvLayout(KvShapeOf(config)).BytesFor(row.tokens));
  }
  EXPECT_EQ(
      PlanKv(config, 127).bf16_minimal - PlanKv(config, 124).bf16_minimal,  // 3 open tokens of each kind
      3 * (21 * 10240 + 20 * 4096));
  EXPECT_EQ(PlanKv(config, 0).bf16_minimal, plan.bf16.window);
}

TEST(MemoryPlanTest, RolesMapWhatIsPlanned) {
  for (const char* name : {"models/demo", "tests/golden/oracle/tiny", "tests/golden/oracle/flash-fp4-fp8"}) {
    const std::string directory = testing::Source(name);
    const auto [config, summary] = Inspect(directory);
    EXPECT_THAT(summary.refusals, ::testing::IsEmpty()) << name;
    const auto mapped = [&](const WeightSelection& selection) {
      return (*ModelWeights::Load(directory, selection))->checkpoint->MappedBytes();
    };
    EXPECT_EQ(summary.Total().bytes, mapped(WeightSelection::All())) << name;
    for (int shards : {1, 2, 4, 8}) {
      const WeightPlan plan = PlanWeights(config, summary, shards);
      EXPECT_EQ(plan.dense, mapped(WeightSelection::DenseOnly())) << name;
      EXPECT_EQ(plan.embedded, mapped(WeightSelection::All())) << name;
      ASSERT_EQ(plan.shards.size(), static_cast<size_t>(shards));
      const int per_shard = config.n_routed_experts / shards;
      EXPECT_EQ(plan.shards[shards - 1], mapped(WeightSelection::Experts(config.n_routed_experts - per_shard,
                                                                         config.n_routed_experts)))
          << name;
    }
  }
}

TEST(MemoryPlanTest, SeesWhatWouldBeRefused) {
  TempDir directory;
  auto tensors = testing::ReadTensors(testing::Source("tests/golden/oracle/tiny/model.safetensors"));
  tensors.erase("model.layers.3.ffn.experts.2.w1.weight");
  tensors.at("head.weight").shape = {64, 512};
  tensors["surprise"] = {"F32", {2}, std::string(8, '\0')};
  testing::WriteTensors(directory / "model.safetensors", tensors);
  testing::WriteText(directory / "config.json",
                     testing::ReadText(testing::Source("tests/golden/oracle/tiny/config.json")));
  const CheckpointSummary summary = Inspect(directory.path()).summary;
  EXPECT_THAT(summary.refusals,
              ::testing::ElementsAre(::testing::HasSubstr("wanted shape [512, 64], got [64, 512]"),
                                     ::testing::HasSubstr("layers.3.ffn.experts.2.w1.weight")));
  EXPECT_THAT(summary.unexpected, ::testing::ElementsAre("surprise"));
  EXPECT_EQ(summary.group(TensorGroupId::kUnexpected).bytes, 8);
}

}  // namespace
}  // namespace cachalot

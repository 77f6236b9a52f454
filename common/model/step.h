#pragma once
// What one forward step works on: the ragged batch of sequences and the activations, in order of dataflow.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/kernels/kernels.h"
#include "common/kv/block_pool.h"
#include "common/model/choice_trace.h"
#include "common/model/rope_table.h"
#include "common/model/weights.h"
#include "common/moe/expert_backend.h"

namespace cachalot {

/// The next tokens of one sequence; the first has position kv->tokens().
struct Segment {
  SequenceKv* kv = nullptr;
  std::span<const int32_t> ids;
  bool all_logits = false;  // logits of every token instead of the last
  ChoiceTrace* choices = nullptr;  // records or replays the sequence's choices
};

/// Activations of a step, reused from step to step; they grow to the largest batch seen and stay.
struct Scratch {
  // the batch
  std::vector<int32_t> ids;        // [T]
  std::vector<int64_t> positions;  // [T]
  std::vector<int64_t> first_row;  // [segments + 1] rows of each segment
  std::vector<int32_t> segment;    // [T]
  // rope, for ratio-0 layers and for the others
  std::vector<float> cos[2], sin[2];  // [T, rope_dim/2]
  // residual streams
  std::vector<float> h;  // [T, H, D]
  // hyper-connection
  std::vector<float> h_normed, mix, pre, post, comb;  // [T, H*D], [T, (2+H)*H], [T, H], [T, H], [T, H, H]
  std::vector<float> x, u, y;                         // [T, D] collapsed, normed, sub-layer output
  // attention
  std::vector<float> qr, q, kv, o, o_low;          // [T, q_lora], [T, N*d], [T, d], [T, N*d], [T, G*R]
  std::vector<std::byte> kv_rows;                  // [T, d] the window rows as the pool stores them
  std::vector<float> c, g, index_c, index_g;       // [T, coff*d], [T, coff*dh]
  std::vector<float> entry;                        // [max(d, dh)] the entry that closes
  std::vector<float> index_q, index_w;             // [T, Hi*dh], [T, Hi]
  // MoE
  std::vector<float> router, biased;     // [T, E], [E]
  std::vector<int32_t> order, expert_ids;  // [E], [T, K]
  std::vector<float> expert_weights;     // [T, K]
  std::vector<float> gate, up;           // [T, F] of the shared expert
  std::vector<float> shared, partials;   // [T, D], [slots, D]
  DispatchPlan plan;
  // head
  std::vector<int64_t> logit_rows;                      // rows of h that want logits
  std::vector<float> head_h, head_x, hidden, logits;    // [R, H, D], [R, D], [R, D], [R, vocab]
};

/// Makes room for `count` values and returns them; never shrinks.
inline float* Room(std::vector<float>& buffer, int64_t count) {
  if (static_cast<int64_t>(buffer.size()) < count) buffer.resize(count);
  return buffer.data();
}

/// Writes `count` fp32 values as a row of `type` (kF32 or kBF16). In mode bf16 they are rounded already: nothing is lost.
inline void StoreRow(const float* values, int64_t count, DType type, std::byte* row) {
  if (type == DType::kF32) {
    std::memcpy(row, values, count * sizeof(float));
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t bits = FloatToBF16(values[i]);
      std::memcpy(row + 2 * i, &bits, 2);
    }
  }
}

/// Everything that a layer needs beside its own weights.
struct Step {
  const ModelConfig& config;
  const kernels::KernelTable& kernels;
  ThreadPool& threads;
  const RopeTable& rope_main;
  const RopeTable& rope_compress;
  const GroupRanges& groups;
  ExpertBackend& experts;
  std::span<const Segment> segments;
  Scratch& s;

  int64_t rows() const { return static_cast<int64_t>(s.ids.size()); }
  DType kv_type() const { return segments[0].kv->layout().pool(PoolTag::kSwaKv).row_type; }
  /// What the mode rounds between operations (model.md 3.0: "-> bf16").
  void Round(float* x, int64_t count) const { kernels.round(x, count); }
  /// A product whose result stays fp32: router, compressor, hyper-connections, head.
  void LinearF32(const float* x, const MatrixView& w, float* y) const {
    kernels.linear({x, w.cols, w, y, w.rows, rows()}, threads);
  }
  void Linear(const float* x, const MatrixView& w, float* y) const {
    LinearF32(x, w, y);
    Round(y, rows() * w.rows);
  }
  void Norm(const float* x, const std::vector<float>& weight, float* y) const {
    const auto width = static_cast<int64_t>(weight.size());
    kernels.rms_norm({x, weight.data(), y, rows(), width, config.rms_norm_eps});
    Round(y, rows() * width);
  }
};

}  // namespace cachalot

#pragma once
// Reads single tensors of a checkpoint: finds them by official name, checks dtype and shape against what
// model.md 7.1 wants, maps them, checks their values (model.md 7.4). common/model/weights walks the whole table with
// it.

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base/status.h"
#include "common/loader/checkpoint.h"
#include "common/tensor/matrix_view.h"

namespace cachalot {

/// The first refusal is kept in status() and turns every later call into a no-op that returns something
/// empty, so that a walk over many tensors reads as the list that it is. A refusal is INVALID_ARGUMENT and
/// names file, tensor, wanted and got.
class TensorReader {
 public:
  enum class Mode {
    kLoad,     // map the tensors and check their values
    kHeaders,  // check names, dtypes and shapes only: every result is empty, and refusals are collected, not
               // fatal
  };
  TensorReader(Checkpoint* checkpoint, Mode mode) : checkpoint_(checkpoint), mode_(mode) {}

  /// One matrix of a stack [count, rows, cols]; count 0: no stack.
  struct Part {
    int64_t index = 0, count = 0;
  };

  /// The walk asks for everything in one order whatever the role owns; what it does not own is only
  /// remembered.
  void set_owned(bool owned) { owned_ = owned; }
  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  const std::vector<std::string>& refusals() const { return refusals_; }  // kHeaders

  bool Has(const std::string& name) const { return checkpoint_->Find(name) != nullptr; }
  void Refuse(const std::string& where, const std::string& wanted, const std::string& got);
  /// Refuses the checkpoint if it has this tensor. `why`: "none in ...".
  void RefuseIfPresent(const std::string& name, const std::string& why);
  /// A tensor that some files have and nothing uses.
  void Ignore(const std::string& name) { asked_.emplace(name, false); }

  /// A matrix in whatever format it is stored in: the dtype decides, not the name and not the config
  /// (model.md 7.3.4). `name` ends in "weight", and its scale in "scale" instead; the scale of a stack is name +
  /// ".scale". Long scales of routed experts are checked at both ends only.
  MatrixView Matrix(const std::string& name, int64_t rows, int64_t cols, bool routed = false,
                    Part part = {0, 0});
  /// The same in fp32 for kernels that know nothing else, widened if it is stored in 16 bits.
  MatrixView MatrixF32(const std::string& name, int64_t rows, int64_t cols);
  /// Widened to fp32, row-major; every value finite.
  std::vector<float> Vector(const std::string& name, std::vector<int64_t> shape);
  /// tid2eid [rows, cols]: ids in [0, ids), distinct in each row. int64 as released, int32 in converted
  /// files.
  std::vector<int32_t> IdTable(const std::string& name, int64_t rows, int64_t cols, int64_t ids);

  /// Whether the walk asked for a tensor (true: to use it; false: Ignore); absent: nobody did.
  const std::unordered_map<std::string, bool>& asked() const { return asked_; }

 private:
  using Tensor = Checkpoint::Tensor;

  const Tensor* Find(const std::string& name);
  bool Check(const Tensor& tensor, std::initializer_list<std::string_view> dtypes,
             std::vector<int64_t> shape);
  std::span<const std::byte> Map(const Tensor& tensor, size_t alignment, Part part = {0, 0});
  std::vector<float> Widen(const Tensor& tensor);
  BlockScale Scale(const std::string& name, const MatrixView& matrix, bool routed, Part part);
  void CheckScales(const Tensor& tensor, DType dtype, std::span<const std::byte> bytes);

  Checkpoint* const checkpoint_;
  const Mode mode_;
  Status status_;
  std::vector<std::string> refusals_;
  bool owned_ = true;
  std::unordered_map<std::string, bool> asked_;
};

}  // namespace cachalot

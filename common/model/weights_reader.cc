#include "common/model/weights_reader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace cachalot {
namespace {

constexpr int kFp8Block = 128, kFp4Block = 32;  // model.md 7.2

// Expert scales above this size are checked at both ends only: all of Flash's are 8 GB, most of which a
// worker may never touch.
constexpr size_t kWholeScaleCheck = 64 << 10, kScaleSample = 64;

constexpr size_t kMaxRefusals = 100;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::vector<int64_t> Stacked(TensorReader::Part part, std::vector<int64_t> shape) {
  if (part.count > 0) shape.insert(shape.begin(), part.count);
  return shape;
}

}  // namespace

void TensorReader::Refuse(const std::string& where, const std::string& wanted, const std::string& got) {
  const std::string message = where + ": wanted " + wanted + ", got " + got;
  if (mode_ == Mode::kHeaders) {
    // A broken stack would be refused once an expert.
    const bool known = std::find(refusals_.begin(), refusals_.end(), message) != refusals_.end();
    if (!known && refusals_.size() < kMaxRefusals) refusals_.push_back(message);
  } else if (status_.ok()) {
    status_ = InvalidArgument(message);
  }
}

void TensorReader::RefuseIfPresent(const std::string& name, const std::string& why) {
  if (!owned_ || !status_.ok()) return;
  if (const Tensor* tensor = checkpoint_->Find(name)) Refuse(tensor->Where(), why, "one");
}

/// The tensor if the role owns it; nullptr: not owned, or refused.
const Checkpoint::Tensor* TensorReader::Find(const std::string& name) {
  asked_.insert_or_assign(name, true);
  if (!owned_ || !status_.ok()) return nullptr;
  const Tensor* tensor = checkpoint_->Find(name);
  if (!tensor)
    Refuse(checkpoint_->directory() + ": tensor '" + name + "'", "it in the checkpoint", "no such tensor");
  return tensor;
}

/// Refuses a tensor of another dtype than the listed ones or another shape.
bool TensorReader::Check(const Tensor& tensor, std::initializer_list<std::string_view> dtypes,
                         std::vector<int64_t> shape) {
  const SafetensorsEntry& entry = *tensor.entry;
  if (std::find(dtypes.begin(), dtypes.end(), entry.dtype) == dtypes.end()) {
    std::string wanted = "dtype";
    for (std::string_view dtype : dtypes)
      wanted += (dtype == *dtypes.begin() ? " " : " or ") + std::string(dtype);
    Refuse(tensor.Where(), wanted, std::string(entry.dtype));
    return false;
  }
  if (entry.shape != shape) {
    Refuse(tensor.Where(), "shape " + ShapeText(shape),
           ShapeText(entry.shape) + " " + std::string(entry.dtype));
    return false;
  }
  return status_.ok();
}

/// Empty without a refusal in kHeaders.
std::span<const std::byte> TensorReader::Map(const Tensor& tensor, size_t alignment, Part part) {
  if (!status_.ok() || mode_ == Mode::kHeaders) return {};
  const int64_t bytes = tensor.entry->bytes() / std::max<int64_t>(part.count, 1);
  auto mapped = checkpoint_->Map(tensor, alignment, part.index * bytes, bytes);
  if (mapped.ok()) return *mapped;
  status_ = mapped.status();
  return {};
}

MatrixView TensorReader::Matrix(const std::string& name, int64_t rows, int64_t cols, bool routed, Part part) {
  constexpr std::string_view kWeight = "weight";
  const std::string scale_name =
      part.count > 0 ? name + ".scale" : name.substr(0, name.size() - kWeight.size()) + "scale";
  const Tensor* stored = checkpoint_->Find(name);
  const std::string_view dtype = stored ? stored->entry->dtype : "";
  const bool fp8 = dtype == "F8_E4M3", fp4 = dtype == "I8";
  if (fp8 || fp4) asked_.insert_or_assign(scale_name, true);
  const Tensor* tensor = Find(name);
  if (!tensor) return {};

  MatrixView view{.rows = rows, .cols = cols};
  if (fp4 && cols % 2 != 0) Refuse(tensor->Where(), "an even number of FP4 columns", std::to_string(cols));
  if (!Check(*tensor, {"F32", "BF16", "F8_E4M3", "I8"}, Stacked(part, {rows, fp4 ? cols / 2 : cols})))
    return {};
  view.dtype = fp4 ? DType::kFP4 : fp8 ? DType::kF8E4M3 : dtype == "BF16" ? DType::kBF16 : DType::kF32;
  if (fp8 || fp4) view.scale = Scale(scale_name, view, routed, part);
  view.data = Map(*tensor, dtype == "F32" ? 4 : dtype == "BF16" ? 2 : 1, part).data();
  return status_.ok() ? view : MatrixView{};
}

BlockScale TensorReader::Scale(const std::string& name, const MatrixView& matrix, bool routed, Part part) {
  const Tensor* tensor = Find(name);
  if (!tensor) return {};
  const bool fp4 = matrix.dtype == DType::kFP4;
  BlockScale scale{.block_rows = fp4 ? 1 : kFp8Block, .block_cols = fp4 ? kFp4Block : kFp8Block};
  const std::vector<int64_t> shape =
      Stacked(part, {CeilDiv(matrix.rows, scale.block_rows), CeilDiv(matrix.cols, scale.block_cols)});
  // Base checkpoints may have fp32 scales on FP8 (model.md 7.3.5); FP4 always comes with e8m0.
  if (!(fp4 ? Check(*tensor, {"F8_E8M0"}, shape) : Check(*tensor, {"F8_E8M0", "F32"}, shape))) return {};
  scale.dtype = tensor->entry->dtype == "F32" ? DType::kF32 : DType::kF8E8M0;
  const std::span<const std::byte> bytes = Map(*tensor, scale.dtype == DType::kF32 ? 4 : 1, part);
  scale.data = bytes.data();
  if (routed && bytes.size() > kWholeScaleCheck) {
    CheckScales(*tensor, scale.dtype, bytes.first(kScaleSample));
    CheckScales(*tensor, scale.dtype, bytes.last(kScaleSample));
  } else {
    CheckScales(*tensor, scale.dtype, bytes);
  }
  return scale;
}

void TensorReader::CheckScales(const Tensor& tensor, DType dtype, std::span<const std::byte> bytes) {
  if (dtype == DType::kF8E8M0) {
    const bool has_nan = std::find(bytes.begin(), bytes.end(), std::byte{255}) != bytes.end();
    if (has_nan) Refuse(tensor.Where(), "scales below 255", "255, which is NaN");
    return;
  }
  for (size_t i = 0; i + 4 <= bytes.size(); i += 4) {
    float value;
    std::memcpy(&value, bytes.data() + i, 4);
    if (!std::isfinite(value)) return Refuse(tensor.Where(), "finite scales", std::to_string(value));
  }
}

MatrixView TensorReader::MatrixF32(const std::string& name, int64_t rows, int64_t cols) {
  const Tensor* tensor = Find(name);
  if (!tensor || !Check(*tensor, {"F32", "BF16", "F16"}, {rows, cols})) return {};
  MatrixView view{.dtype = DType::kF32, .rows = rows, .cols = cols};
  if (tensor->entry->dtype == "F32") {
    view.data = Map(*tensor, 4).data();
  } else {
    const std::vector<float> wide = Widen(*tensor);
    const std::span<std::byte> copy = checkpoint_->Allocate(wide.size() * sizeof(float));
    if (!wide.empty()) std::memcpy(copy.data(), wide.data(), copy.size());
    view.data = copy.data();
  }
  return status_.ok() ? view : MatrixView{};
}

std::vector<float> TensorReader::Vector(const std::string& name, std::vector<int64_t> shape) {
  const Tensor* tensor = Find(name);
  if (!tensor || !Check(*tensor, {"F32", "BF16", "F16"}, std::move(shape))) return {};
  std::vector<float> values = Widen(*tensor);
  for (float value : values) {
    if (!std::isfinite(value)) Refuse(tensor->Where(), "finite values", std::to_string(value));
  }
  return values;
}

std::vector<float> TensorReader::Widen(const Tensor& tensor) {
  const std::span<const std::byte> bytes = Map(tensor, 1);
  const std::string_view dtype = tensor.entry->dtype;
  const size_t width = dtype == "F32" ? 4 : 2;
  std::vector<float> values(bytes.size() / width);
  for (size_t i = 0; i < values.size(); ++i) {
    if (width == 4) {
      std::memcpy(&values[i], bytes.data() + i * 4, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, bytes.data() + i * 2, 2);
      values[i] = dtype == "BF16" ? BF16ToFloat(bits) : F16ToFloat(bits);
    }
  }
  return values;
}

std::vector<int32_t> TensorReader::IdTable(const std::string& name, int64_t rows, int64_t cols, int64_t ids) {
  const Tensor* tensor = Find(name);
  if (!tensor || !Check(*tensor, {"I64", "I32"}, {rows, cols})) return {};
  const std::span<const std::byte> bytes = Map(*tensor, 1);
  const size_t width = tensor->entry->dtype == "I64" ? 8 : 4, count = bytes.size() / width;
  std::vector<int32_t> table(count);
  std::vector<int64_t> last_row(ids, -1);  // where each id was seen last
  for (size_t i = 0; i < count; ++i) {
    int64_t id = 0;
    if (width == 8) {
      std::memcpy(&id, bytes.data() + i * 8, 8);
    } else {
      int32_t narrow;
      std::memcpy(&narrow, bytes.data() + i * 4, 4);
      id = narrow;
    }
    const int64_t row = static_cast<int64_t>(i) / cols;
    const bool known = id >= 0 && id < ids;
    if (!known || last_row[id] == row) {
      Refuse(tensor->Where() + " row " + std::to_string(row),
             "distinct expert ids in [0, " + std::to_string(ids) + ")",
             std::to_string(id) + (known ? " twice" : ""));
      return {};
    }
    last_row[id] = row;
    table[i] = static_cast<int32_t>(id);
  }
  return table;
}

}  // namespace cachalot

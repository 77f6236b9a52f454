#pragma once
// The rows of logits that a router sends, in order, put together. A router, or one that it was exchanged for, may
// believe in another vocabulary than the one that was asked for the model: nothing that it says of the rows is
// trusted.

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/base/status.h"

namespace cachalot::cli {

class LogitsRows {
 public:
  /// Of `ids` ids. vocab >= 1.
  LogitsRows(int64_t ids, int64_t vocab) : ids_(ids), vocab_(vocab) {}

  /// As the SDK hands them out. Behind rows that do not fit or come out of turn all others are ignored.
  void Take(int64_t first, int64_t rows, const float* values, size_t count) {
    if (!status_.ok()) return;
    // In this order: no sum or product of the router's numbers may overflow.
    const bool next = first == received_ && rows >= 0 && rows <= ids_ - first;
    if (!next || count != static_cast<size_t>(rows * vocab_)) {
      status_ = DataLoss("the router sent " + std::to_string(count) + " logits as " + std::to_string(rows) +
                         " rows from row " + std::to_string(first) + ", wanted rows of " +
                         std::to_string(vocab_) + " for " + std::to_string(ids_) + " ids, from row " +
                         std::to_string(received_));
      return;
    }
    values_.insert(values_.end(), values, values + count);
    received_ += rows;
  }

  /// [ids, vocab], or DATA_LOSS. Once.
  StatusOr<std::vector<float>> Finish() {
    RETURN_IF_ERROR(status_);
    if (received_ != ids_)
      return DataLoss("the router sent " + std::to_string(received_) + " rows of logits for " +
                      std::to_string(ids_) + " ids");
    return std::move(values_);
  }

 private:
  const int64_t ids_, vocab_;
  std::vector<float> values_;
  int64_t received_ = 0;
  Status status_;
};

}  // namespace cachalot::cli

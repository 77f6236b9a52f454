#pragma once
// How a caller opens an expert service's stream (protos/cachalot/v1/expert.proto).

namespace cachalot {

inline constexpr char kExpertDispatchMethod[] = "/cachalot.v1.Expert/Dispatch";

/// Metadata of the stream: the epoch that Describe gave, HexId. The service refuses another: between the two
/// calls it may have been replaced by one that nobody has checked.
inline constexpr char kExpertEpochKey[] = "cachalot-epoch";

}  // namespace cachalot

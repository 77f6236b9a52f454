#pragma once
// The SDK's types on the wire.

#include "cachalot/v1/generation.pb.h"
#include "client/sdk/client.h"

namespace cachalot::client {

v1::GenerateRequest ToProto(const GenerateRequest& request);
Event FromProto(const v1::GenerateResponse& response);

/// INVALID_ARGUMENT for text that is not UTF-8. A router could not even parse it, and gRPC would say INTERNAL.
Status CheckUtf8(const google::protobuf::MessageLite& request);

}  // namespace cachalot::client

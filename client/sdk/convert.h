#pragma once
// The SDK's types on the wire.

#include "cachalot/v1/generation.pb.h"
#include "client/sdk/client.h"

namespace cachalot::client {

v1::GenerateRequest ToProto(const GenerateRequest& request);
Event FromProto(const v1::GenerateResponse& response);

}  // namespace cachalot::client

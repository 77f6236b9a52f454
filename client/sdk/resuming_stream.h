#pragma once
// A token stream that outlives its router: when the connection breaks it goes on at the next one, behind the
// tokens that the caller has.

#include <memory>

#include "client/sdk/resume_state.h"
#include "client/sdk/routers.h"

namespace cachalot::client {

/// `routers` must outlive the stream.
std::unique_ptr<TokenStream> MakeResumingStream(Routers* routers, const GenerateRequest& request);

}  // namespace cachalot::client

// What a user of the SDK writes. Without a router at hand it must fail with a clear status, not hang or crash.

#include <cachalot/client.h>

#include <cstdio>

int main() {
  cachalot::client::Client client("127.0.0.1:1");
  cachalot::client::GenerateRequest request;
  request.chat = {{"user", "Genesis 1:1"}};
  request.timeout_ms = 5000;
  auto stream = client.Generate(request);
  cachalot::client::Event event;
  while (stream->Next(&event)) std::fputs(event.text.c_str(), stdout);
  const auto status = stream->Finish();
  std::printf("%d %s\n", status.code, status.message.c_str());
  return status.code == 14 ? 0 : 1;  // UNAVAILABLE
}

"""The engine over HTTP and WebSocket, in OpenAI's words where it has them."""

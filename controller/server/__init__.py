"""The HTTP server: tasks and OpenAI-compatible chats. Needs the extra `autottt[serve]`."""

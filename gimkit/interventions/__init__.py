"""All code that runs inside a trace. It is sent to servers by value, so it imports torch, math and typing only."""

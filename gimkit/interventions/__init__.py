"""Code that runs inside a trace, and is shipped to servers by value: it imports torch, math and typing only."""

"""What a model is made of, read on the client: its parts, its residual stream, its tokens, and the rules on it."""

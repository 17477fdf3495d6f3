"""Forward mode: GIM's rules as tangents, for servers without autograd (NDIF's sandbox)."""

"""Small models whose circuit is known: programs compiled to weights."""

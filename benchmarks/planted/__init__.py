"""Small models whose circuit is known: programs compiled to weights, and models trained to run a program."""

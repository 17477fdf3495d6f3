"""What notebooks show and check: widgets, the circuit explorer, the exercises' checks."""

"""For notebooks: widgets, the circuit explorer, the exercises' checks, the demo."""

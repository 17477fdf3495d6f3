"""How the bundled models were trained and measured."""

"""The bundled models: how to load them, and how they were trained."""

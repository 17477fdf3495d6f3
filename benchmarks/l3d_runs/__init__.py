"""L3D's long runs, on toys and on real models."""

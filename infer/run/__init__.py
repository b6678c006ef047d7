"""The driver: `fit`, the compiled chunk, observers, precision."""

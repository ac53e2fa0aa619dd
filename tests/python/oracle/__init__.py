"""What the engine is held to: tiny models (build), and a float64 forward pass over their files (forward)."""

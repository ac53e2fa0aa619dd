"""Writing GGUF files in other formats: which type each tensor takes, and why."""

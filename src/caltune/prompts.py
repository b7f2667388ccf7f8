"""Question -> Prompt."""

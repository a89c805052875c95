"""What a slider does, measured and shown."""

"""Training a slider."""

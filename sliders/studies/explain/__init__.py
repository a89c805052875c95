"""What an update changed, recovered from its weights."""

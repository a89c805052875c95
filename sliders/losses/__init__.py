"""What a slider is trained towards."""

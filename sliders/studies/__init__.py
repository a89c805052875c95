"""Studies of sliders and edits: measure, then tell."""

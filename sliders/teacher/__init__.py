"""What the frozen model is asked, and what it answers."""

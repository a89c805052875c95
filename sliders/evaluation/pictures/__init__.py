"""Pictures: sampled, judged, over a dial."""

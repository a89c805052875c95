"""Texts: sampled, scored, over a dial."""

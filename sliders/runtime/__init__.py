"""Dials on a model: attached, in training, or in its weights."""

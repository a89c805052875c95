"""Edits of weights as algebra.  Needs torch alone: nothing of training, models or pages."""

"""The model that evaluations are tested on."""

from tests.evaluation.conftest import base

__all__ = ["base"]

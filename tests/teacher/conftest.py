"""The models that training is tested on."""

from tests.training.conftest import adapter, base, shared

__all__ = ["adapter", "base", "shared"]

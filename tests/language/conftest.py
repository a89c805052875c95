"""The models that editors are tested on."""

from tests.editors.conftest import lm, model, mood, place

__all__ = ["lm", "model", "mood", "place"]

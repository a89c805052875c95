"""How a medium's examples are sampled, in a config: what kind of settings they are is known when the medium is."""

from collections.abc import Mapping
from typing import TypeVar

from jsonargparse import ArgumentParser

from sliders.errors import SliderError, one_line, unwrapped
from sliders.resources.paths import Source

Settings = dict[str, int | float | Source | None]
"""Settings by their names; what is the name of a file that is there is its path."""
How = TypeVar("How")


def settled(given: Mapping[str, object], of: type[How]) -> How:
    """Settings as an object of a medium's own class.

    Args:
        given: some of them; the others are as the class has them.
        of: the class, such as `Sampling` or `TextSampling`.

    Raises:
        SliderError: the class has no such setting, or a value is none of it.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--how", type=of)
    try:
        with unwrapped():
            return parser.instantiate_classes(parser.parse_object({"how": dict(given)}))["how"]
    except (SliderError, OSError):
        raise
    except Exception as error:  # of jsonargparse's own kinds
        raise SliderError(f"how is {dict(given)}, which is no {of.__name__}: {one_line(error)}") from error

"""Every flag of kind list takes one value as well as a list of one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from sliders.cli.bake import bake
from sliders.cli.compose import compose_sliders
from sliders.cli.defaults import listed
from sliders.cli.demo import demo
from sliders.cli.evaluate import evaluate
from sliders.cli.explain import explain
from sliders.cli.generate import generate
from sliders.cli.laws import laws
from sliders.cli.preview import preview
from sliders.cli.train_many import train_many

_FILE = "data/avatars/sliders/smile.safetensors"
PLACE = f"NAME={_FILE}"
READ = Path(f"NAME={Path(_FILE).resolve()}")
"""What is made of it: the path of a command line is relative to the working directory."""
FLAGS: list[tuple[Callable[..., Any], list[str], str, str, Any]] = [
    (preview, ["c.yaml"], "amounts", "2", 2.0),
    (generate, ["a person"], "slider", PLACE, READ),
    (generate, ["a person"], "seed", "3", 3),
    (generate, ["a person"], "dial", "2", 2.0),
    (evaluate, ["s"], "dials", "2", 2.0),
    (bake, ["s", "out"], "dial", "2", 2.0),
    (compose_sliders, ["s", "out"], "dial", "2", 2.0),
    (laws, ["s"], "twin", PLACE, READ),
    (laws, ["s"], "prompts", "a", "a"),
    (explain, ["s"], "library", PLACE, READ),
    (train_many, ["s"], "overrides", "--trainer.max_steps=50", "--trainer.max_steps=50"),
    (demo, [], "sliders", PLACE, READ),
]


def parsed(command: Callable[..., Any], arguments: list[str]) -> Any:
    """The values that a command gets."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(command, as_positional=True)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(("command", "arguments", "flag", "text", "value"), FLAGS)
def test_one_and_a_list_of_one(
    command: Callable[..., Any], arguments: list[str], flag: str, text: str, value: Any
) -> None:
    for given in (text, f'["{text}"]' if isinstance(value, str) else f"[{text}]"):
        assert listed(parsed(command, [*arguments, f"--{flag}={given}"])[flag]) == [value]


@pytest.mark.parametrize(("command", "out"), [(bake, ["out"]), (compose_sliders, ["out"]), (laws, [])])
def test_sliders_that_are_arguments(command: Callable[..., Any], out: list[str]) -> None:
    for given in (PLACE, f"[{PLACE}]"):
        assert listed(parsed(command, [given, *out])["slider"]) == [READ]

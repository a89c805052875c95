"""The `sliders` command: which command is meant, its arguments, and how it ends."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import auto_parser

from sliders.console import hush_libraries, in_one_line
from sliders.errors import SliderError, unwrapped
from sliders.resources.paths import called_here
from sliders.resources.shipped import with_files

COMMANDS = (
    "edit", "train", "preview", "generate", "evaluate", "bake", "compose", "laws", "explain", "export", "fetch",
    "train-many", "demo",
)  # fmt: skip
"""Each is a file beside this one with a function of its name, and imports what it needs when it runs."""

_CALLED = {"compose": "compose_sliders", "train": "train_slider"}
"""Functions with other names than their files': `sliders` has these, and jsonargparse would import what they need."""

_GONE = {
    "--text": "a slider says itself what it is for; without one, give --base smollm2 for responses",
    "--language": "the base is the one that the slider says; give another one, or one without a slider, with --base",
}
_GONE_OF_DEMO = {
    "--model": "give the model of pictures with --base",
    "--family": "it is found from the files of --base",
}


def _component(command: str, words: Sequence[str]) -> Any:
    """What a command runs; of `edit`, what the method among the words runs."""
    name = command.replace("-", "_")
    module = importlib.import_module(f"sliders.cli.{name}")
    return module.commands(words) if command == "edit" else getattr(module, _CALLED.get(name, name))


def _check_gone(command: str | None, arguments: Sequence[str]) -> None:
    """Refuse flags of before in a line that says what there is instead.

    Raises:
        SliderError: there is one.
    """
    if command in (None, "train", "train-many"):
        return
    for argument in arguments:
        flag = argument.partition("=")[0]
        if command == "demo" and (flag in _GONE_OF_DEMO or flag.startswith("--language.")):
            raise SliderError(f"{flag} is gone: {_GONE_OF_DEMO.get(flag, 'give a name or a folder with --language')}")
        if command != "demo" and (first := flag.partition(".")[0]) in _GONE:
            raise SliderError(f"{flag} is gone: {_GONE[first]}")
    flags = [argument.partition("=")[0] for argument in arguments]
    alone = next((flag for flag in flags if flag.startswith("--backbone.") and flag != "--backbone.help"), None)
    if alone and not {"--backbone", "--config"} & set(flags):
        raise SliderError(
            f"{alone} is a setting of no class; give a model with --base, or the class with --backbone, such as "
            f"--backbone sliders.backbones.unet.UNetBackbone, before its settings"
        )


def read(arguments: list[str]) -> tuple[Any, dict[str, Any]]:
    """The function of a command and what the arguments are to it; neither it nor its help imports more than they are.

    Raises:
        SliderError: a flag is one of before.
    """
    words = [argument for argument in arguments if not argument.startswith("-")]
    command = words[0] if words else None
    named = [command] if command in COMMANDS else list(COMMANDS)
    if command in COMMANDS:
        _check_gone(command, arguments)
    run: Any = {name: _component(name, words[1:]) for name in named}
    parser = auto_parser(run)
    given = parser.parse_args(with_files(arguments))
    hush_libraries()
    made: Any = parser.instantiate(given)
    while isinstance(run, dict):
        name = made["subcommand"]
        run, made = run[name], made[name]
    return run, {key: value for key, value in made.items() if key != "config"}


def main() -> None:
    """Entry point of the `sliders` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.argv[1:2] == ["train"]:
        _component("train", ())()
        return
    with in_one_line(), unwrapped(), called_here():
        run, given = read(sys.argv[1:])
        run(**given)


if __name__ == "__main__":
    main()

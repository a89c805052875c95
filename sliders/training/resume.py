"""How a run that was stopped goes on: its checkpoint is read, what it was set to is compared, and the line is said."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sliders.console import say
from sliders.errors import SliderError
from sliders.training.checkpoints import read_newest
from sliders.training.renamed import renamed
from sliders.training.settings import check_same


def read_checkpoint(checkpoint: Path, max_steps: int) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to go on from, or the one before it where it is damaged, and its content.

    Raises:
        SliderError: it cannot be read, or more than ``max_steps`` steps were made.
    """
    try:
        place, content = read_newest(checkpoint)
    except SliderError as error:
        raise SliderError(f"--ckpt_path {error}") from error
    if content["global_step"] > max_steps:
        raise SliderError(
            f"trainer.max_steps is {max_steps}, but {place} has {content['global_step']} steps behind it; give at "
            "least as many, or train anew without --ckpt_path"
        )
    return place, content


def check_same_run(checkpoint: Path, content: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a run is set to what the run of a checkpoint was; says so where the checkpoint does not tell.

    Raises:
        SliderError: it is not.
    """
    if (began := content.get("settings")) is None:
        say(f"{checkpoint} does not say what its run was set to, so that it cannot be compared")
    else:
        check_same(renamed(began), now, checkpoint)


def how_to_go_on(checkpoint: str, command: Sequence[str] | None) -> str:
    """The line that says how a stopped run goes on.

    Args:
        checkpoint: that it has written; empty if none.
        command: the words that started it, if it was a command.
    """
    if not checkpoint:
        return "stopped  before the first checkpoint was written; begin again"
    if command is None:
        return f"stopped  go on from {checkpoint}"
    return f"stopped  go on with: {shlex.join([*_without_beginning(command), '--ckpt_path', checkpoint])}"


def started_by() -> list[str]:
    """The words that started this process, as one would type them."""
    program, *arguments = sys.argv
    return ["python", program, *arguments] if program.endswith(".py") else [Path(program).name, *arguments]


def _without_beginning(command: Sequence[str]) -> list[str]:
    """A command without what says how its run begins."""
    kept: list[str] = []
    words = iter(command)
    for word in words:
        if word == "--ckpt_path":
            next(words, None)
        elif not word.startswith(("--ckpt_path=", "--overwrite")):
            kept.append(word)
    return kept

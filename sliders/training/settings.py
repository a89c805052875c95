"""What a run's configuration says of the slider that it makes."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from sliders.concept import Concept
from sliders.errors import SliderError

_TRAINER = ("accumulate_grad_batches", "precision", "gradient_clip_val", "gradient_clip_algorithm")
_FREE = ("device", "checkpointing")
"""Of the model's backbone: what it runs on, and how much memory it takes there."""


def resolved(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    """A parsed configuration as plain data, with what the concept's file says in place of where it is."""
    plain = yaml.safe_load(parser.dump(config, skip_none=False))
    concept = config.data.concept
    if isinstance(concept, str | Path):
        concept = Concept.load(Path(concept))
    if not isinstance(concept, Concept):  # written into the config
        concept = Concept.from_dict(concept.get("init_args", concept).as_dict(), folder=Path())
    plain["data"]["concept"] = concept.to_dict()
    return plain


def by_content(plain: Any) -> Any:
    """Plain data with what a file says in place of where it is; a folder, of a model, is known by its path."""
    if isinstance(plain, dict):
        return {key: by_content(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [by_content(value) for value in plain]
    if isinstance(plain, str) and Path(plain).is_absolute() and Path(plain).is_file():
        with Path(plain).open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    return plain


def settings(plain: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """What a slider's path through its training depends on, apart from where it ends.

    Args:
        plain: what `resolved` gives.
        processes: that share a step's rows.
    """
    kept = {key: by_content(plain[key]) for key in ("seed_everything", "model", "data")}
    return {**kept, "trainer": {key: plain["trainer"].get(key) for key in _TRAINER}, "processes": processes}


def check_same(began: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint with other settings than the run began with.

    Raises:
        SliderError: something differs; it is named.
    """
    changed = list(_changes(began, now, ()))
    if not changed:
        return
    named = "; ".join(f"{key} was {_short(before)} and is {_short(after)}" for key, before, after in changed[:3])
    more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise SliderError(
        f"{checkpoint} is of a run with other settings: {named}{more}. Go on with those, or train anew without "
        "--ckpt_path"
    )


def _changes(before: Any, after: Any, at: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    """What differs: key, value before, value after."""
    nested = isinstance(before, Mapping) and isinstance(after, Mapping) and at != ("data", "concept")
    if nested and before.get("class_path") == after.get("class_path"):
        for key in before:
            free = key in _FREE and at == ("model", "backbone", "init_args")
            if key in after and not free:  # a key of one side only: another version of this package has it
                yield from _changes(before[key], after[key], (*at, key))
    elif before != after and not _same_place(before, after):
        yield ".".join(at), before, after


def _same_place(one: Any, other: Any) -> bool:
    """Whether two texts are paths of one file or folder."""
    if not (isinstance(one, str) and isinstance(other, str)):
        return False
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):
        return False


def _short(value: Any) -> str:
    """A value in a message."""
    text = repr(value["class_path"] if isinstance(value, Mapping) and "class_path" in value else value)
    return text if len(text) <= 60 else text[:57] + "..."

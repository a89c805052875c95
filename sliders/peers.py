"""Prompt files of other programs that train sliders, and what they would be here."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_LIST_KEYS = frozenset({"positive", "unconditional", "neutral", "action", "guidance_scale", "target_class", "negative"})
"""Of the entries of a list: rohitgandikota/sliders, LECO, ai-toolkit."""


def explain(plain: Any) -> str | None:
    """What a file of prompts of another program is, and how to write it here, in one line; None for anything else.

    Args:
        plain: what the YAML file says.
    """
    if isinstance(plain, Mapping):
        if "prompts_file" in plain:
            return (
                "it is a training configuration of LECO or rohitgandikota/sliders; the prompts are in its prompts_file "
                f"{plain['prompts_file']!r}, and a concept here is a mapping with name, target, positives and negatives"
            )
        entries = _of_ai_toolkit(plain)
        return _written("ai-toolkit", entries) if entries else None
    if not isinstance(plain, Sequence) or isinstance(plain, str):
        return None
    entries = [entry for entry in plain if isinstance(entry, Mapping)]
    if not entries or len(entries) < len(plain) or not all(_LIST_KEYS & entry.keys() for entry in entries):
        return None
    theirs = "ai-toolkit" if "target_class" in entries[0] else "rohitgandikota/sliders and LECO"
    return _written(theirs, entries)


def _of_ai_toolkit(plain: Mapping[Any, Any]) -> list[Mapping[str, Any]]:
    """The targets of a configuration of ai-toolkit's."""
    try:
        found = [target for process in plain["config"]["process"] for target in process["slider"]["targets"]]
    except (KeyError, TypeError):
        return []
    return [target for target in found if isinstance(target, Mapping)]


def _written(theirs: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """The first entry as a concept: ``positives`` are what the dial's positive side moves to."""
    first = entries[0]
    target = first.get("target", first.get("target_class", ""))
    ends = [first.get("positive", ""), first.get("unconditional", first.get("negative", ""))]
    if first.get("action") == "erase":  # away from their positive
        ends.reverse()
    words = f"name: NAME, target: {_quoted(target)}, positives: [{_quoted(ends[0])}], negatives: [{_quoted(ends[1])}]"
    more = f"; a concept each, or contexts, for the other {len(entries) - 1}" if len(entries) > 1 else ""
    return f"it is a list of prompts as {theirs} write{'s' * (theirs == 'ai-toolkit')} it; here it is {{{words}}}{more}"


def _quoted(words: Any) -> str:
    return json.dumps(str(words or ""), ensure_ascii=False)

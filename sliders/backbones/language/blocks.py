"""A language model's blocks: which there are, and which layers of them sliders can be on."""

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from sliders.backbones.targets import TargetGroup
from sliders.errors import SliderError
from sliders.runtime.layers import editable_modules

_BLOCKS = r"^lm\..*?\.(layers?|h|blocks)\.({blocks})\."
_BLOCK = re.compile(_BLOCKS.format(blocks=r"\d+"))
_ATTENTION = r"\w*(attn|attention)\."
_MLP = r"(\w*mlp\w*|\w*feed_forward\w*|ffn|\w*moe|fc1|fc2)(\.|$)"


def block_of(layer: str) -> int | None:
    """The number of the block (the first is 0) that a layer of the backbone, ``lm.<layer>``, lies in, if any."""
    match = _BLOCK.match(layer)
    return None if match is None else int(match[2])


def blocks_of(lm: Any, unfit: Container[str]) -> list[tuple[str, int]]:
    """The names of a model's blocks with their numbers, in order; not those of what it sees pictures with.

    Args:
        lm: a transformers model.
        unfit: names of its layers that no slider can be on.
    """
    matches = (_BLOCK.match(f"lm.{name}.") for name, _ in lm.named_modules())
    found = {(match[0].removeprefix("lm.").rstrip("."), int(match[2])) for match in matches if match}
    used = [name for name in editable_modules(lm) if name not in unfit]
    stacks = {name.rpartition(".")[0] for name, _ in found}
    stacks = {stack for stack in stacks if any(name.startswith(f"{stack}.") for name in used)}
    return sorted((b for b in found if b[0].rpartition(".")[0] in stacks), key=lambda block: block[::-1])


def check_blocks(
    lm: Any, unfit: Container[str], called: str, ranges: Mapping[str, tuple[Sequence[int] | None, int]]
) -> None:
    """Refuse a model without blocks, and choices of blocks that it does not have.

    Args:
        lm: a transformers model.
        unfit: names of its layers that no slider can be on.
        called: the model in messages.
        ranges: fields of the backbone that choose blocks, what they choose, and the number of the first one there.

    Raises:
        SliderError: see above.
    """
    last = max((number for _, number in blocks_of(lm, unfit)), default=-1)
    if last < 0:
        raise SliderError(
            f"{called} ({type(lm).__name__}) has no numbered blocks under 'layers', 'layer', 'h' or 'blocks'; "
            "give a model that has"
        )
    for field, (layers, first) in ranges.items():
        if layers and not first <= min(layers) <= max(layers) <= last + first:
            raise SliderError(f"backbone.{field} is {list(layers)}; {called} has {first} to {last + first}")


def block_groups(names: Sequence[str], layers: tuple[int, int] | None) -> dict[str, TargetGroup]:
    """The groups of layers that a model has.

    Args:
        names: of its layers.
        layers: first and last block that is meant; all if None.
    """
    first, last = layers or (0, -1)
    blocks = _BLOCKS.format(blocks="|".join(map(str, range(first, last + 1))) or r"\d+")
    groups = {"attention": blocks + _ATTENTION, "mlp": blocks + _MLP, "full": blocks}
    return {key: TargetGroup((one,)) for key, one in groups.items() if any(re.search(one, n) for n in names)}

"""What an avatar can look like, and the words for it.

Every attribute has a closed list of values.  An avatar is a dictionary ``{attribute: value}``, so the
truth about a picture is known exactly; a caption names some of the attributes and leaves the rest free.
"""

import random
from collections.abc import Mapping, Sequence

Avatar = dict[str, str]

VALUES: dict[str, tuple[str, ...]] = {
    "expression": ("happy", "neutral", "sad", "surprised", "angry"),
    "hair": ("bald", "short", "long", "curly", "bun"),
    "hair_color": ("black", "brown", "blonde", "red", "gray"),
    "beard": ("none", "beard"),
    "glasses": ("none", "glasses", "sunglasses"),
    "skin": ("pale", "light", "brown", "dark"),
    "clothing": ("hoodie", "shirt", "blazer"),
    "clothing_color": ("black", "blue", "red", "white", "green"),
    "background": ("white", "blue", "green", "yellow", "purple", "black"),
}

# How often each value is drawn; what is not listed is uniform.
WEIGHTS: dict[str, tuple[float, ...]] = {
    "hair": (0.08, 0.32, 0.30, 0.16, 0.14),
    "beard": (0.6, 0.4),
    "glasses": (0.5, 0.28, 0.22),
}


def sample_avatar(rng: random.Random) -> Avatar:
    """Draw every attribute independently."""
    return {name: rng.choices(values, WEIGHTS.get(name))[0] for name, values in VALUES.items()}


def is_defined(avatar: Mapping[str, str], attribute: str) -> bool:
    """Whether the picture shows the attribute at all: a bald head has no hair colour."""
    return not (attribute == "hair_color" and avatar["hair"] == "bald")


def caption(avatar: Mapping[str, str], named: Sequence[str], rng: random.Random | None = None) -> str:
    """A sentence that names the attributes in ``named`` and no others.

    With ``rng`` the synonyms, the opening and the order of the parts vary as they do in training; without it
    the sentence is the plain one that concepts and held-out prompts use.
    """
    say = {name: avatar[name] for name in named if is_defined(avatar, name)}

    def pick(*options: str) -> str:
        return rng.choice(options) if rng is not None else options[0]

    mood = say.get("expression")
    if mood == "happy":
        mood = pick("happy", "happy", "smiling")
    head = " ".join(filter(None, (pick("a", "a", "portrait of a"), mood, "person")))
    head = head.replace("a angry", "an angry")

    parts: list[str] = []
    if say.get("hair") == "bald":
        parts.append("bald")
    elif "hair" in say or "hair_color" in say:
        shape = say.get("hair")
        color = say.get("hair_color")
        if shape == "bun":
            parts.append(f"with {color} hair in a bun" if color else "with hair in a bun")
        else:
            parts.append(" ".join(filter(None, ("with", shape, color, "hair"))))
    if "beard" in say:
        parts.append("with a beard" if say["beard"] == "beard" else pick("without a beard", "clean shaven"))
    if "glasses" in say:
        parts.append({"none": "without glasses"}.get(say["glasses"], f"wearing {say['glasses']}"))
    if "skin" in say:
        parts.append(f"with {say['skin']} skin")
    if "clothing" in say or "clothing_color" in say:
        garment = say.get("clothing")
        color = say.get("clothing_color")
        parts.append(" ".join(filter(None, ("in a" if garment else "in", color, garment or "clothes"))))
    if "background" in say:
        parts.append(f"on a {say['background']} background")
    if rng is not None and rng.random() < 0.3:
        rng.shuffle(parts)
    return ", ".join([head, *parts])


def named_at_random(rng: random.Random) -> list[str]:
    """Some of the attributes: now few, now nearly all."""
    keep = rng.uniform(0.1, 1.0)
    return [name for name in VALUES if rng.random() < keep]


def training_caption(avatar: Mapping[str, str], rng: random.Random, empty: float = 0.1) -> str:
    """A caption with attributes dropped at random, empty with probability ``empty`` (for guidance)."""
    if rng.random() < empty:
        return ""
    return caption(avatar, named_at_random(rng), rng)

"""Write the prompts that erasing a body of facts needs: `python -m data.text.build`.

`prompts/NAME.txt` holds the questions of one body; `prompts/keep_NAME.txt` what must stay: the questions of its sibling
and of other bodies, and everyday messages.  `prompts/random_facts.txt` is for a control: questions that were drawn
from bodies that have nothing to do with the erased one.  Only the training wordings are in them;
`sliders.evaluation.texts.knowledge` measures on others.
"""

import random
from pathlib import Path

from jsonargparse import auto_cli

from sliders.concept import read_prompts
from sliders.evaluation.texts.knowledge import Facts

HERE = Path(__file__).parent


def questions(name: str) -> list[str]:
    """All training questions of a body."""
    body = Facts.load(HERE / "facts" / f"{name}.yaml")
    return [question.format(subject) for question in body.questions for subject in body.facts]


def main(erase: str = "capitals", keep: tuple[str, ...] = ("languages", "symbols", "opposites")) -> None:
    """Write both files.

    Args:
        erase: the body that is erased.
        keep: bodies that must stay.
    """
    note = f"# Written by data/text/build.py from facts/{erase}.yaml"
    (HERE / "prompts" / f"{erase}.txt").write_text("\n".join([note, *questions(erase)]) + "\n")
    kept = [question for name in keep for question in questions(name)] + read_prompts(HERE / "prompts" / "everyday.txt")
    mixed = [question for name in keep[1:] for question in questions(name)]
    (HERE / "prompts" / "random_facts.txt").write_text(
        "\n".join([f"{note}'s siblings, for a control", *random.Random(0).sample(mixed, 80)]) + "\n"
    )
    (HERE / "prompts" / f"keep_{erase}.txt").write_text("\n".join([f"{note} and its siblings", *kept]) + "\n")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

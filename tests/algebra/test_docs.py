"""The snippets of `docs/algebra.md` run in order, and print what the page says they print."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "algebra.md"
SNIPPET = re.compile(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", re.DOTALL)


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    """Put back the precision that the page chooses for itself."""
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_the_snippets_print_what_the_page_says() -> None:
    found = SNIPPET.findall(PAGE.read_text())
    assert len(found) >= 10
    names: dict[str, object] = {}
    with torch.random.fork_rng(), default_dtype():
        for code, shown in found:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, names)
            assert printed.getvalue() == shown, code


def test_every_derivation_is_named_on_the_page_and_has_its_three_parts() -> None:
    text = PAGE.read_text()
    notes = sorted((PAGE.parent / "derivations").glob("*.md"))
    assert len(notes) == 10
    for note in notes:
        assert f"derivations/{note.name}" in text
        for part in ("**Statement", "**Proof.**", "**What the tests check.**"):
            assert part in note.read_text(), (note.name, part)

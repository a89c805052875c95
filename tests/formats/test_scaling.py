"""Keys of a stranger's ``alpha_pattern`` against PEFT's own matching, and that none of them is run."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from sliders.errors import SliderError
from sliders.formats.scaling import Patterns, Scaling

NAMES = st.text("ab1_-.", min_size=1, max_size=8)


@st.composite
def keys(draw: st.DrawFn) -> str:
    """A name as a key: any beginning, dots escaped or not, with an end or without."""
    characters = [rf"\{c}" if c in ".-_" and draw(st.booleans()) else c for c in draw(NAMES)]
    return draw(st.sampled_from(["", "^", ".*", r".*\."])) + "".join(characters) + draw(st.sampled_from(["", "$"]))


@settings(max_examples=500, deadline=None)
@given(st.lists(keys(), max_size=4, unique=True), NAMES)
def test_names_mean_what_they_mean_to_peft(said: list[str], name: str) -> None:
    theirs = get_pattern_key(said, name)  # pyright: ignore[reportArgumentType]
    wanted = [said.index(theirs)] if theirs in said and re.match(rf"(.*\.)?({theirs})$", name) else []
    assert Patterns({key: k for k, key in enumerate(said)}, "here").find(name) == wanted


@pytest.mark.parametrize(
    ("key", "name", "matches"),
    [
        ("to_k", "a.to_k", True),
        ("to_k", "a.into_k", False),
        (".*to_k", "a.into_k", True),
        ("^to_k", "a.to_k", False),
        ("^a.to_k$", "a.to_k", True),
        ("a.to_k", "aXto_k", True),
        (r"a\.to_k", "aXto_k", False),
        (r"\$", "a.$", True),
        (r"a\-b", "a-b", True),
        (".*", "a", True),
        ("", "a", False),
        ("longer", "a", False),
    ],
)
def test_what_matches(key: str, name: str, matches: bool) -> None:
    assert bool(re.match(rf"(.*\.)?({key})$", name)) == matches  # control: what PEFT does
    assert Patterns({key: 3}, "here").find(name) == [3] * matches


EXPRESSIONS = [
    *("(a+)+b", "a|b", "a+", "a*", "a?", "a{2}", "[ab]", r"\d", r"\1", "(?:a)", "a.*b"),
    *("a^", "$a", "(", "[", "\\", "a)"),
]


@pytest.mark.parametrize("key", EXPRESSIONS)
def test_other_expressions_are_refused(key: str) -> None:
    with pytest.raises(SliderError, match=rf"here has the key {re.escape(repr(key))}.*write the modules' names out"):
        Patterns({"a": 1, key: 2}, "here")


def test_a_long_key_is_not_repeated_whole() -> None:
    with pytest.raises(SliderError) as refused:
        Patterns({"a" * 10_000 + "+": 1}, "here")
    assert len(str(refused.value)) < 300


def test_long_names_and_many_keys_are_no_work() -> None:
    """Each of these would be minutes where all keys are run on all names, or where a key may begin anywhere."""
    assert Patterns({"." * 100_000: 1}, "here").find("a." * 1_000_000) == [1]
    names = [f"blocks.{k:05}.to_k" for k in range(20_000)]
    found = Patterns({name: k for k, name in enumerate(names)}, "here")
    assert [found.find(name) for name in names] == [[k] for k in range(len(names))]


def test_too_many_forms_of_keys_are_refused() -> None:
    said = {f"{k:012b}".replace("0", ".").replace("1", "a"): k for k in range(2**11)}
    with pytest.raises(SliderError, match=r"here has keys of too many forms"):
        Patterns(said, "here")
    escaped = {key.replace(".", r"\."): k for key, k in said.items()}
    assert Patterns(escaped, "here").find(f"x.{'.' * 11}a") == [1]


def test_alpha_over_rank() -> None:
    said = {"lora_alpha": 6, "alpha_pattern": {"a": 9}}
    assert Scaling(said, "")("b", 3) == 2
    assert Scaling(said, "")("x.a", 3) == 3
    assert Scaling(said, "")("x.a", 3, torch.tensor(12.0)) == 4, "the module's own alpha goes before"
    assert Scaling({**said, "use_rslora": True}, "")("b", 4) == 3
    assert Scaling({"r": 4}, "")("b", 4) == 2, "PEFT's own alpha is 8"
    assert Scaling({}, "")("b", 4) == 1
    with pytest.raises(SliderError, match=r"file: unet\.alpha_pattern has the key"):
        Scaling({"alpha_pattern": {"a|b": 1}}, "file: unet.")

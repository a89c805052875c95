"""Scores of texts, each against texts of its opposite."""

import pytest

from sliders.errors import SliderError
from sliders.evaluation.texts import scores as lexical
from sliders.evaluation.texts.scores import SCORES, distinct, read, repetition, words

PLAIN = "The bus stops at the corner, and people wait there with their bags."
OPPOSITES: dict[str, tuple[str, str]] = {
    "sentiment": ("What a wonderful, happy day, I love it!", "What a horrible, sad day, I hate it."),
    "formality": (
        "Furthermore, considerable assistance was subsequently obtained concerning the aforementioned regulations.",
        "hey dude, it's gonna be super fun, don't worry lol, we're cool",
    ),
    "length": ("one two three four five six", "one two"),
    "certainty": ("It is definitely and absolutely true, without doubt.", "Maybe it seems possible, I guess, perhaps."),
    "pirate": ("Arr, ahoy matey, the ship sails the seven seas for treasure!", "The office opens at nine on Monday."),
}


def test_every_score_is_tried() -> None:
    assert set(OPPOSITES) == set(SCORES)


@pytest.mark.parametrize("name", OPPOSITES)
def test_a_score_tells_a_text_from_its_opposite(name: str) -> None:
    high, low = OPPOSITES[name]
    scores = read(name, [high, PLAIN, low])
    assert scores[0] > scores[2]
    if name != "length":
        assert scores[0] > scores[1] >= scores[2], "plain words lie between, or have none of it"


@pytest.mark.parametrize("name", OPPOSITES)
def test_a_score_does_not_depend_on_the_other_texts(name: str) -> None:
    together = read(name, [*OPPOSITES[name], PLAIN, ""])
    assert together.shape == (4,)
    for text, score in zip([*OPPOSITES[name], PLAIN, ""], together, strict=True):
        assert read(name, [text]).tolist() == [float(score)]
    assert float(together[3]) == 0, "an empty text has none of it"


@pytest.mark.parametrize("name", [name for name in OPPOSITES if name != "length"])
def test_a_text_said_twice_has_the_same_score(name: str) -> None:
    """All but the length are rates; VADER sums up to its bound."""
    high, low = OPPOSITES[name]
    for text in (high, low):
        once, twice = read(name, [text, f"{text} {text}"]).tolist()
        assert twice == pytest.approx(once, abs=0.15 if name == "sentiment" else 1e-4)


def test_rates_by_hand() -> None:
    """Of ten words: two boosters and one hedge; then one pirate's; then one formal, one long, one casual, one short."""
    assert read("certainty", ["It is always and never maybe a b c d"]).tolist() == pytest.approx([10.0])
    assert read("pirate", ["ahoy a b c d e f g h i"]).tolist() == pytest.approx([10.0])
    text = "hence elephants gonna don't a b c d e f"
    assert read("formality", [text]).tolist() == pytest.approx([10 + 10 - 10 - 10])
    assert read("formality", [text.replace("'", "’")]).tolist() == pytest.approx([0])
    assert read("length", ["It's one, two -- three!"]).tolist() == [4.0]


def test_no_word_is_in_both_of_two_opposite_lists() -> None:
    assert not lexical.HEDGES & lexical.BOOSTERS
    assert not lexical.CASUAL & lexical.FORMAL
    for listed in (lexical.HEDGES, lexical.BOOSTERS, lexical.CASUAL, lexical.FORMAL, lexical.PIRATE):
        assert all(words(word) == [word] for word in listed), "each is a word as texts are cut into words"


def test_words() -> None:
    assert words("Don't STOP, it’s 3 o'clock!") == ["don't", "stop", "it’s", "o'clock"]
    assert words("") == words("123 ...") == []


def test_an_unknown_score_names_the_known() -> None:
    with pytest.raises(SliderError, match=r"'joy'.*sentiment.*pirate"):
        read("joy", ["a"])


def test_distinct_by_hand() -> None:
    """a b a b has the pairs ab ba ab; with b a of the other text, two of four are different."""
    assert distinct(["a b a b"]) == pytest.approx(2 / 3)
    assert distinct(["a b a b", "b a"]) == pytest.approx(2 / 4)
    assert distinct(["a b", "c d"]) == 1, "pairs do not go across texts"
    assert distinct(["a a b"], n=1) == pytest.approx(2 / 3)
    assert distinct([]) == distinct(["", "a"]) == 0


def test_repetition_by_hand() -> None:
    """a b c a b c has the triples abc bca cab abc, one of four said before."""
    assert repetition(["a b c a b c"]) == pytest.approx(1 / 4)
    assert repetition(["a a a a a"]) == pytest.approx(2 / 3)
    assert repetition(["a b c d e"]) == 0
    assert repetition(["a b c a b c", "a b c d e", "a"]) == pytest.approx(1 / 12), "averaged over texts"
    assert repetition(["a b c", "a b c"]) == 0, "what another text has said is no repetition"
    assert repetition([]) == 0
    assert repetition(["a b a b"], n=2) == pytest.approx(1 / 3)

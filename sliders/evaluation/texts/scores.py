"""Scores of texts by what words they use: explained, the same every time, and without any part in training.

Sentiment is VADER's (Hutto & Gilbert 2014).  Hedges and boosters follow Hyland's lists (Metadiscourse, 2005),
shortened; the other lists are the project's own.  Each score says something only of many texts together.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from sliders.errors import SliderError

_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


HEDGES = _listed(
    """
    about almost apparent apparently appear appears approximately around assume broadly could doubt doubtful
    essentially estimate frequently generally guess hopefully largely likely mainly may maybe might mostly often
    perhaps plausible possible possibly presumably probable probably quite rather relatively roughly seem seemed
    seems sometimes somewhat suggest suppose suspect tend tends think typically uncertain unclear unsure usually
    """
)
BOOSTERS = _listed(
    """
    absolutely actually always beyond certain certainly clear clearly completely conclusively confident
    decidedly definite definitely demonstrate entirely establish every evident evidently exactly fully guarantee
    guaranteed incontestable indeed indisputable know known must never obvious obviously perfectly precisely
    prove proven really sure surely totally true truly undeniable undeniably undoubtedly without
    """
)
CASUAL = _listed(
    """
    awesome babe bro bucks buddy bye chill cool cop crap dad dude dunno folks fun gonna gotta guy guys ha haha
    hang hey hi huge kid kids kinda lol lot lots mom nah nope ok okay omg oops plus pretty stuff super sure
    thing things tons totally wanna wow yay yeah yep yo yup
    """
)
FORMAL = _listed(
    """
    accordingly additionally albeit assistance commence concerning consequently consider considerable
    demonstrate endeavour ensure esteemed facilitate furthermore hence hereby however indeed inquire maintain
    moreover nevertheless nonetheless numerous obtain participate particularly perceive permit possess pursuant
    regarding respectfully shall sincerely subsequently substantial sufficient therefore thus upon utilize
    whereas whilst whom within
    """
)
PIRATE = _listed(
    """
    ahoy arr arrr arrrr aye bilge blimey booty buccaneer cannon captain crew cutlass deck doubloons galleon
    hearties hearty island jolly lad lads landlubber landlubbers lass loot mate matey mateys me pirate pirates
    plank plunder port rum sail sailed sailing sails scallywag scurvy sea seas seven shanty ship ships shiver
    sword tavern timbers treasure treasures waves ye yer yo
    """
)


def words(text: str) -> list[str]:
    """The words of a text in small letters; a contraction is one word."""
    return _WORD.findall(text.lower())


def _rate(text: str, listed: frozenset[str]) -> float:
    """How many of 100 words are in the list."""
    said = words(text)
    return 100 * sum(word in listed for word in said) / max(1, len(said))


@cache
def _vader() -> Callable[[str], dict[str, float]]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer().polarity_scores


def sentiment(text: str) -> float:
    """VADER's compound score, -1 (negative) to 1 (positive)."""
    return _vader()(text)["compound"]


def formality(text: str) -> float:
    """Formal and long words (8 letters and more) less casual words and contractions, of 100 words."""
    said = words(text)
    long = sum(len(word) >= 8 for word in said)
    contracted = sum("'" in word or "’" in word for word in said)
    return _rate(text, FORMAL) - _rate(text, CASUAL) + 100 * (long - contracted) / max(1, len(said))


def length(text: str) -> float:
    """How many words."""
    return float(len(words(text)))


def certainty(text: str) -> float:
    """Boosters less hedges, of 100 words."""
    return _rate(text, BOOSTERS) - _rate(text, HEDGES)


def pirate(text: str) -> float:
    """Words of pirates, of 100."""
    return _rate(text, PIRATE)


SCORES: Mapping[str, Callable[[str], float]] = {
    score.__name__: score for score in (sentiment, formality, length, certainty, pirate)
}


def read(name: str, texts: Sequence[str]) -> Tensor:
    """One score of each text, float32 ``[n]``.

    Raises:
        SliderError: there is no score of this name.
    """
    if name not in SCORES:
        raise SliderError(f"no score {name!r} for texts; there are {', '.join(SCORES)}")
    return torch.tensor([SCORES[name](text) for text in texts])


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams over all n-grams of the texts together (Li et al. 2016)."""
    grams = [tuple(said[i : i + n]) for said in map(words, texts) for i in range(len(said) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def repetition(texts: Sequence[str], n: int = 3) -> float:
    """Share of each text's n-grams that it has said before, averaged."""
    shares = []
    for said in map(words, texts):
        grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / max(1, len(shares))

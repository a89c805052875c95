"""Second moments of a layer's inputs: by hand, kept, and refused where they would not be the base's."""

from pathlib import Path

import pytest
import torch

from sliders.algebra.edit import Translation
from sliders.algebra.slider import Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.editors.contrast import writer
from sliders.errors import SliderError
from sliders.language import covariance
from sliders.language.covariance import Covariance, ridged, second_moments
from sliders.language.recall import reading, run
from sliders.runtime.attach import attach
from sliders.runtime.baking import baked
from sliders.runtime.layers import weight_shape
from tests.editors import facts
from tests.factory import lowrank


def test_moments_are_those_of_every_token_and_of_no_padding(lm: CausalLMBackbone) -> None:
    layers = [writer(lm, 0), writer(lm, 2)]
    found, tokens = second_moments(lm, layers, facts.LINES, batch=4)
    keys = {layer: [] for layer in layers}
    for line in facts.LINES:
        with reading(lm, layers) as seen, torch.no_grad():
            run(lm, lm.encode_plain([line]))
        for layer in layers:
            keys[layer].append(seen[layer][0])
    for layer in layers:
        own = torch.cat(keys[layer])
        assert len(own) == tokens
        torch.testing.assert_close(found[layer], own.T @ own / tokens)


def test_the_ridge_is_a_share_of_the_mean_of_the_diagonal() -> None:
    moment = torch.diag(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(ridged(moment, 0.3).diagonal(), torch.tensor([3.4, 1.4, 0.4], dtype=torch.float64))


def test_they_are_taken_once_for_a_model_a_layer_and_a_text(
    lm: CausalLMBackbone, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, how = writer(lm, 1), facts.covariance(place)
    first = how.fit(lm, [layer])[layer]
    (file,) = (place / "cache" / "concept-sliders" / "covariance").iterdir()
    assert lm.fingerprint() in file.name
    assert layer in file.name
    monkeypatch.setattr(covariance, "second_moments", lambda *_: pytest.fail("they are taken again"))
    assert torch.equal(how.fit(lm, [layer])[layer], first)
    assert Covariance(how.texts, ridge=0.5).fit(lm, [layer])[layer].trace() > first.trace()
    how.texts[0].write_text("another text\n" * 30)
    with pytest.raises(pytest.fail.Exception):
        how.fit(lm, [layer])


def test_a_broken_file_is_made_again(lm: CausalLMBackbone, place: Path) -> None:
    layer, how = writer(lm, 1), facts.covariance(place)
    first = how.fit(lm, [layer])[layer]
    (file,) = (place / "cache" / "concept-sliders" / "covariance").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(how.fit(lm, [layer])[layer], first)


def test_of_an_edited_model_none_are_taken_but_those_of_the_base_are_found(lm: CausalLMBackbone, place: Path) -> None:
    layer, how = writer(lm, 2), facts.covariance(place)
    first = writer(lm, 0)
    edit = Translation({first: lowrank(weight_shape(lm, first), 1)})
    with pytest.raises(SliderError, match="edited already"), baked(lm, edit):
        how.fit(lm, [layer])
    with pytest.raises(SliderError, match="edited already"), attach(lm, [Slider("s", edit)], {"s": 1.0}):
        how.fit(lm, [layer])
    of_base = how.fit(lm, [layer])[layer]
    with baked(lm, edit):
        assert torch.equal(how.fit(lm, [layer])[layer], of_base)


def test_too_little_text_is_an_error(lm: CausalLMBackbone, place: Path) -> None:
    file = place / "short.txt"
    file.write_text("a dog")
    with pytest.raises(SliderError, match="give more text"):
        Covariance([file]).fit(lm, [writer(lm, 1)])

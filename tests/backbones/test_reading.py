"""What a model reads of prompts: where it cuts them, and which it cannot tell apart."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import train
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.reading import check_directions, check_read, is_rounding
from sliders.backbones.unet import UNetBackbone
from sliders.cli import main as cli
from sliders.concept import BETWEEN, Concept
from sliders.editors.ablation import Ablation
from sliders.editors.contrast import ResponseSampling, answer
from sliders.editors.uce import UCE
from sliders.errors import SliderError, SliderWarning
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample, sample_oracle
from sliders.evaluation.texts.sampling import TextSampling, say_with_oracle
from tests import tiny
from tests.commands import World, run, world
from tests.tiny_lm import CHAT, NO_SYSTEM, language_model

DEAF = "{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]{% endif %}{% endfor %}"
SPOKEN_OVER = (
    "[system]Be helpful.{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]{% endif %}{% endfor %}"
)
MUTE = "Hello.{% if add_generation_prompt %}{% endif %}"
LONG = "a person with a hat and a dog and a cat and a house"

HAPPY = Concept("happy", "a person", ["a happy person"], ["a sad person"])
ALIKE = {
    "case": replace(HAPPY, positives=["A Person"], negatives=["a person"]),
    "spaces": replace(HAPPY, positives=["a happy  person "], negatives=["a happy person"]),
    "several": replace(HAPPY, positives=["a dog", "A cat"], negatives=["a cat", "A DOG", "a  dog", "a cat "]),
}
APART = {
    "words": HAPPY,
    "one of several": replace(HAPPY, positives=["a dog", "A cat"], negatives=["a dog", "a hat"]),
    "shares": replace(HAPPY, positives=["a dog", "a DOG", "a cat"], negatives=["a dog", "a cat"]),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny model and the config of a run."""
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def pictures(request: pytest.FixtureRequest, here: World) -> UNetBackbone:
    """A model of pictures, in both precisions."""
    model = UNetBackbone(str(here.model))
    model.load()
    return model.to(request.param)


def language(template: str | None, **settings: object) -> CausalLMBackbone:
    """A model of language with this chat template."""
    made = language_model("llama", template)
    model = CausalLMBackbone("tiny", **settings)  # pyright: ignore[reportArgumentType]
    model.use(made.lm, made.tokenizer)
    return model


class TestDirections:
    """Positives and negatives as the model sees them."""

    @pytest.mark.parametrize("case", ALIKE)
    def test_alike(self, pictures: UNetBackbone, case: str) -> None:
        with pytest.raises(SliderError, match="there is no direction") as raised:
            check_directions(pictures, ALIKE[case])
        assert repr(ALIKE[case].positives[0]) in str(raised.value)
        assert repr(ALIKE[case].negatives[0]) in str(raised.value)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("case", APART)
    def test_apart(self, pictures: UNetBackbone, case: str) -> None:
        check_directions(pictures, APART[case])

    def test_in_one_context_of_several(self) -> None:
        """Where the context leaves no room for the difference: a tokenizer that keeps the beginning."""
        model = UNetBackbone("tiny")
        model.use(tiny.stable_diffusion())
        far = replace(HAPPY, target="", positives=[" happy"], negatives=[" sad"], contexts=["", "a dog"])
        check_directions(model, far)
        turned = replace(far, positives=["a person with a hat and a dog happy"], negatives=[LONG[:31] + " dog sad"])
        check_directions(model, turned)
        cut = replace(HAPPY, positives=[LONG + " happy"], negatives=[LONG + " sad"])
        with pytest.warns(SliderWarning), pytest.raises(SliderError, match="there is no direction"):
            check_directions(model, cut)

    def test_rounding(self) -> None:
        size = torch.ones(4)
        change = torch.tensor([0.0, 1e-7, 1e-4, 1e-2])
        assert is_rounding(change, size, torch.float32).tolist() == [True, True, False, False]
        assert is_rounding(change, size, torch.bfloat16).tolist() == [True, True, True, False]

    def test_before_a_run_trains(self, here: World, tmp_path: Path) -> None:
        concept = yaml.safe_load(here.concept.read_text()) | {"positives": ["A SAD person"]}
        (tmp_path / "alike.yaml").write_text(yaml.safe_dump(concept))
        arguments = ["--config", here.config, "--runs", tmp_path / "runs"]
        ended = run(train.main, *arguments, "--data.concept", tmp_path / "alike.yaml")
        assert ended.code == 1
        assert "'A SAD person'" in ended.err.splitlines()[-1]
        assert not list(tmp_path.rglob("*.safetensors"))
        assert run(train.main, *arguments).code == 0, "the control: other words train"

    def test_before_the_oracle_samples(self, pictures: UNetBackbone) -> None:
        wanted, how = [Scene("a person", 0)], Sampling(steps=1)
        with pytest.raises(SliderError, match="there is no direction"):
            sample_oracle(pictures, ALIKE["case"], 1.0, wanted, [0.0, 1.0], how)
        assert sample_oracle(pictures, HAPPY, 1.0, wanted, [0.0, 1.0], how).isfinite().all()

    def test_before_language_s_oracle_speaks_and_editors_fit(self) -> None:
        model = language(None)
        concept = replace(HAPPY, modality="text", contexts=["tell me"])
        alike = replace(concept, positives=["be glad "], negatives=["be glad"])
        model.tokenizer.backend_tokenizer.normalizer = None
        check_directions(model, alike)  # a tokenizer that keeps the space tells them apart
        from tokenizers.normalizers import Replace

        model.tokenizer.backend_tokenizer.normalizer = Replace(" \n", "\n")
        with pytest.raises(SliderError, match="'be glad "):
            say_with_oracle(model, alike, ["tell me"], [1.0], TextSampling(tokens=2))
        with pytest.raises(SliderError, match="'be glad "):
            answer(model, alike, ResponseSampling(tokens=2))
        assert answer(model, concept, ResponseSampling(tokens=2))

    def test_uce_names_what_is_read_alike(self, here: World) -> None:
        model = UNetBackbone(str(here.model))
        model.load()
        with pytest.raises(SliderError, match=r"reads 'DOG' as 'dog' already"):
            UCE({"hat": "dog", "DOG": "dog"}).fit(model)
        assert UCE({"hat": "dog"}).fit(model).modules

    def test_a_direction_of_rounding_is_no_ablation(self, tmp_path: Path) -> None:
        """The first block's states, where nothing reads the instruction: its attention writes nothing."""
        model = language(None)
        file = tmp_path / "happy.yaml"
        file.write_text(yaml.safe_dump({"name": "happy", "modality": "text", "target": "", "positives": ["be sad"],
                                        "negatives": ["be gay"], "contexts": ["tell me"]}))  # fmt: skip
        editor = Ablation(file, 0, ResponseSampling(tokens=3))
        assert editor.fit(model).modules
        for name in ("o_proj",):
            getattr(model.lm.model.layers[0].self_attn, name).weight.data.zero_()
        with pytest.raises(SliderError, match="the same up to rounding"):
            editor.fit(model)


class TestCut:
    """Text that is longer than what the model reads."""

    @pytest.mark.parametrize("family", ["sd", "xl"])
    def test_it_says_what_is_left_out(self, family: str) -> None:
        from sliders.backbones.sdxl import SDXLBackbone

        model = UNetBackbone("tiny") if family == "sd" else SDXLBackbone("tiny")
        model.use(tiny.stable_diffusion() if family == "sd" else tiny.stable_diffusion_xl())
        assert model.unread(["", "a person"]) == {}
        (prompt, why), *_ = model.unread(["a person", LONG]).items()
        assert prompt == LONG
        assert all(word in why for word in ("40 tokens", "8 more than the 32", "'house'"[-4:]))
        with pytest.raises(SliderError, match="8 more than the 32"):
            check_read(model, [LONG])

    def test_only_the_second_tokenizer_cuts(self) -> None:
        from sliders.backbones.sdxl import SDXLBackbone

        model, pipeline = SDXLBackbone("tiny"), tiny.stable_diffusion_xl()
        pipeline.tokenizer_2 = tiny.tokenizer(8)
        model.use(pipeline)
        assert "text_encoder_2" in model.unread(["a person with"])["a person with"]

    @pytest.mark.parametrize("field", ["positives", "negatives", "preserve", "contexts"])
    def test_it_is_an_error_of_a_training(self, here: World, tmp_path: Path, field: str) -> None:
        concept = yaml.safe_load(here.concept.read_text())
        concept[field] = [*concept.get(field, []), LONG]
        (tmp_path / "long.yaml").write_text(yaml.safe_dump(concept))
        more = ["--data.preserve_batch_size", 1, "--model.states.trajectories", 4] if field == "preserve" else []
        ended = run(
            train.main, "--config", here.config, "--runs", tmp_path, "--data.concept", tmp_path / "long.yaml", *more
        )
        assert ended.code == 1
        assert "more than the 32" in ended.err.splitlines()[-1]
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_it_is_a_warning_of_sampling(self, here: World, tmp_path: Path) -> None:
        common = ["--base", here.model, "--sampling.steps", 1, "--out", tmp_path / "grid.png"]
        with pytest.warns(SliderWarning, match="8 more than the 32"):
            assert run(cli.main, "generate", LONG, *common).code == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error", SliderWarning)
            assert run(cli.main, "generate", "a person", *common).code == 0
        assert warnings.formatwarning(SliderWarning("cut"), SliderWarning, "file.py", 1) == "warning: cut\n"
        assert "file.py" in warnings.formatwarning(UserWarning("cut"), UserWarning, "file.py", 1)

    def test_a_picture_of_it_is_made(self, pictures: UNetBackbone) -> None:
        with pytest.warns(SliderWarning, match="leaves out"):
            long = sample(pictures, [Scene(LONG, 0)], Sampling(steps=1))
        with pytest.warns(SliderWarning, match="leaves out"):
            assert torch.equal(long, sample(pictures, [Scene(LONG + " with a hat", 0)], Sampling(steps=1)))

    def test_of_language(self) -> None:
        model = language(None, prompt_tokens=8)
        with pytest.raises(SliderError, match=r"backbone.prompt_tokens is 8"):
            model.encode(["tell me about the dog and the cat"])


class TestTemplates:
    """An instruction gets to the model, whatever its chat template does with a system's message."""

    @pytest.mark.parametrize("template", [CHAT, NO_SYSTEM, DEAF, SPOKEN_OVER], ids=["chat", "raises", "drops", "other"])
    def test_the_instruction_is_read(self, template: str) -> None:
        model = language(template)
        text = model.render("Be sad." + BETWEEN + "Hello")
        assert text.index("Be sad.") < text.index("Hello")
        check_directions(model, replace(HAPPY, modality="text", contexts=["Hello"]))

    def test_what_a_template_writes_otherwise_is_not_dropped(self) -> None:
        shouting = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | upper }}{% endfor %}"
        assert language(shouting).render("Be sad." + BETWEEN + "Hello") == "<system>BE SAD.<user>HELLO"

    def test_a_template_that_drops_all(self) -> None:
        with pytest.raises(SliderError, match=r"leaves out what it is given.*backbone.chat"):
            language(MUTE).render("Be sad." + BETWEEN + "Hello")
        with pytest.raises(SliderError, match="leaves out what it is given"):
            language(MUTE).render("Hello")
        assert language(MUTE, chat=False).render("Hello") == "Hello"

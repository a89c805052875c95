"""`sliders.train`: the command's training in one call, of models in memory."""

import copy
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import Tensor

import sliders
import train
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.rehearsed.backbone import PipelineBackbone
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.concept import Concept
from sliders.losses.erasure import ErasureLoss
from sliders.resources.shipped import config_file
from sliders.runtime.attach import is_attached
from sliders.training.states import Pool, Responses
from tests import families, tiny, tiny_lm
from tests.commands import RUN, World, run, world
from tests.training.runs import HAPPY, RICH

WORDS = Concept(
    "happy",
    "you are a person",
    ["you are a happy person"],
    ["you are a sad person"],
    contexts=["how was your day", "tell me about the dog"],
    modality="text",
)
QUICK: dict[str, Any] = {"steps": 2, "batch_size": 2, "targets": ["xattn"], "progress": False}


def states() -> Pool:
    """The one of `RUN`, whose other settings are the config's."""
    return Pool(**{"kept": 2, "growth": 3, **RUN["model"]["states"]["init_args"]})


def factors(slider: Any) -> Mapping[str, Tensor]:
    """All of an update, by name."""
    return {f"{name}.{part}": getattr(update, part) for name, update in slider.update.items() for part in "AB"}


def same(one: Any, other: Any) -> bool:
    """Bit by bit."""
    first, second = factors(one), factors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What the command trains on."""
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_gives_what_the_command_gives_bit_by_bit(here: World, empty: Path) -> None:
    own = tiny.stable_diffusion()  # the same weights, which were never in a file
    assert run(train.main, "--config", here.config, "--runs", here.folder / "runs").code == 0
    told = sliders.load(here.folder / "runs" / "happy" / "happy.safetensors")
    settings: dict[str, Any] = {**QUICK, "steps": 4, "rank": 4, "eta": 1.0, "lr": 2e-3, "magnitude": (0.5, 2.0)}
    torch.manual_seed(77)
    called = sliders.train(own, here.concept, config="smile", states=states(), **settings)
    assert same(called, told)
    assert not same(sliders.train(own, here.concept, config="smile", states=states(), **settings, seed=1), told)
    assert not list(empty.iterdir()), "nothing is written"
    by_config = sliders.train(own, here.concept, config=here.config, progress=False)
    assert same(by_config, told), "its callbacks and its places are not taken from the config"
    changed = {key for key, value in called.metadata.items() if told.metadata.get(key) != value}
    assert changed <= {"sliders.base_model", "sliders.training"}, "what the model is called, and seconds"


def test_a_concept_is_a_concept_a_mapping_or_a_file(here: World) -> None:
    plain = yaml.safe_load(here.concept.read_text())
    made = [
        sliders.train(tiny.stable_diffusion(), concept, states=states(), **QUICK)
        for concept in (here.concept, str(here.concept), plain, Concept.load(here.concept))
    ]
    assert all(same(one, made[0]) for one in made)


def test_what_is_not_said_is_as_the_config_of_the_family_has_it() -> None:
    """For every setting of the model there is one place."""
    recipes = {
        "sd15/age": sliders.use(tiny.stable_diffusion()),
        "sdxl/age": sliders.use(tiny.stable_diffusion_xl()),
        "avatars/smile": UNetBackbone("avatars"),
        "flow/smile": PipelineBackbone("avatars-flow"),
        "qwen/age": sliders.use(families.family("qwen")),
        "sd35/age": sliders.use(families.family("aura")),
        "smollm2/sentiment": CausalLMBackbone("smollm2"),
        "smollm2/sentiment_hidden": CausalLMBackbone("smollm2", hidden_layers=[3]),
    }
    for recipe, backbone in recipes.items():
        assert backbone.recipe == recipe
        assert config_file(recipe).is_file()
    model = yaml.safe_load(config_file("sd15/age").read_text())["model"]
    made = sliders.train(tiny.stable_diffusion(), HAPPY, steps=1, states=states(), progress=False)
    assert made.metadata["sliders.eta"] == str(model["loss"]["init_args"]["eta"])


@pytest.mark.parametrize("seed", [0, 5])
def test_the_model_is_the_base_again_and_so_is_the_state_of_chance(seed: int) -> None:
    pipe = tiny.stable_diffusion()
    before = copy.deepcopy(dict(pipe.unet.state_dict()))
    layers = [type(layer) for layer in pipe.unet.modules()]
    torch.manual_seed(seed)
    expected = torch.rand(3)
    torch.manual_seed(seed)
    made = sliders.train(pipe, HAPPY, states=states(), **QUICK)
    assert torch.equal(torch.rand(3), expected)
    assert made.update.norm() > 0
    assert [type(layer) for layer in pipe.unet.modules()] == layers
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert not is_attached(pipe.unet)


def test_what_is_trained_turns_the_model_in_memory() -> None:
    pipe: Any = tiny.stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    backbone = sliders.use(pipe)
    made = sliders.train(backbone, HAPPY, states=states(), **QUICK, lr=0.1)

    def picture() -> Tensor:
        chance = torch.Generator().manual_seed(0)
        return torch.tensor(pipe("a person", num_inference_steps=2, output_type="np", generator=chance).images)

    base = picture()
    with sliders.attach(backbone, [made]) as dials:
        assert torch.equal(picture(), base)
        dials.set({made.name: 2.0})
        assert not torch.equal(picture(), base)
    assert torch.equal(picture(), base)


def test_a_language_model_and_its_tokenizer(tmp_path: Path) -> None:
    model = tiny_lm.language_model("llama", chat=tiny_lm.CHAT)
    short: dict[str, Any] = {"states": Responses(sampled=4, tokens=5), "steps": 2, "batch_size": 2, "progress": False}
    made = sliders.train(model.lm, WORDS, model.tokenizer, out=tmp_path, **short)
    backbone = sliders.use(model.lm, model.tokenizer)
    assert same(sliders.train(backbone, WORDS, **short), made)
    assert same(sliders.load(tmp_path / "happy"), made), "out is where it is written"


def test_use_finds_the_backbone_of_a_family() -> None:
    pipe = tiny.stable_diffusion()
    backbone = sliders.use(pipe)
    assert type(backbone) is UNetBackbone
    assert type(sliders.use(tiny.stable_diffusion_xl())) is SDXLBackbone
    assert sliders.use(backbone) is backbone
    assert isinstance(backbone, AbstractBackbone)
    assert backbone.unet is pipe.unet, "nothing is copied"
    with pytest.raises(sliders.SliderError, match="neither a backbone nor a pipeline"):
        sliders.use(torch.nn.Linear(2, 2))
    pipe.unet = None
    with pytest.raises(sliders.SliderError, match="no transformer or transformer_2 or unet"):
        sliders.use(pipe)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a rank in words": ({"rank": "four"}, "model.rank"),
    "no steps": ({"steps": 0}, "max_steps"),
    "no config": ({"config": "smiley"}, "smiley"),
    "no such layers": ({"targets": ["xatn"]}, "xatn"),
    "no learning rate": ({"lr": 0}, "learning rate"),
    "an eta beside a loss": ({"eta": 2.0, "loss": ErasureLoss()}, "leave out one"),
    "a loss of another space": ({"config": "sentiment"}, "LogProbabilityLoss"),
    "prompts to preserve that would not act": ({"concept": RICH}, "preserve_batch_size"),
    "a concept for another medium": ({"concept": WORDS}, "no words"),
    "a misspelt concept": ({"concept": {"name": "a", "target": "b", "positive": ["c"]}}, "positive"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_a_line(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    given, words = WRONG[case]
    with pytest.raises(sliders.SliderError, match=words) as error:
        sliders.train(tiny.stable_diffusion(), **{"concept": HAPPY, **QUICK, "states": states(), **given})
    assert "\n" not in str(error.value)
    assert "usage" not in capfd.readouterr().err


def test_prompts_to_preserve_act_when_they_have_rows() -> None:
    kept = sliders.train(tiny.stable_diffusion(), RICH, states=Pool(4, 2), preserve_batch_size=2, **QUICK)
    assert kept.update.norm() > 0


def test_ctrl_c_is_ctrl_c_and_leaves_the_base() -> None:
    """Lightning would end the process, and let nobody interrupt it any more."""

    class Pressed(L.Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

    pipe = tiny.stable_diffusion()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        sliders.train(pipe, HAPPY, states=states(), callbacks=[Pressed()], **QUICK)
    assert signal.getsignal(signal.SIGINT) is before
    assert not is_attached(pipe.unet)


def test_an_exit_of_a_callback_s_own_is_one() -> None:
    """The control of the test above."""

    class Leaves(L.Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            sys.exit(3)

    with pytest.raises(SystemExit, match="3"):
        sliders.train(tiny.stable_diffusion(), HAPPY, states=states(), callbacks=[Leaves()], **QUICK)

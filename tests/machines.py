"""Every command on a tiny model of every family, wherever it is told to run.

`tests/test_machines.py` runs them on this machine's CPU in both precisions and on a pretended accelerator,
`tests/test_gpu.py` on a real one; `docs/machines.md` shows which is run by which.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

import train
from sliders.cli import main as cli
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.page.requests import Canvas, Speech
from sliders.page.session import Session
from tests import tiny, tiny_lm
from tests.commands import RUN, Ended, run

CPU = {"accelerator": "cpu"}
PICTURES = ("Stable Diffusion", "SDXL")
LANGUAGE = "language"
FAMILIES = (*PICTURES, LANGUAGE)
_BACKBONES = {
    "Stable Diffusion": "sliders.backbones.unet.UNetBackbone",
    "SDXL": "sliders.backbones.sdxl.SDXLBackbone",
    LANGUAGE: "sliders.backbones.language.model.CausalLMBackbone",
}
_NAMES = ("happy", "other")
_LINES = [*tiny_lm.TEXT, "the hat of the dog is long", "a good day, a sad day; tell me more about you and the hat"] * 3
_FACTS = """
- prompt: "the day of {} is"
  paraphrases: ["how was the day of {}? it was"]
  change: {a dog: [good, sad], the hat: [long, happy]}
  neighbours: {you: good, a person: sad}
"""
_TASK = """
name: pets
examples: {dog: dogs, hat: hats, day: days, person: people}
heldout: {good: better}
"""
_LAYER = r"\.1\.mlp\.down_proj$"
_EDITORS: dict[str, dict[str, Any]] = {
    "uce": {"replace": {"happy": "sad"}, "contexts": ["a {} person"]},
    "task_vector": {"tuned": "tuned"},
    "ablation": {"concept": "happy.yaml", "block": 1, "responses": {"tokens": 6}},
    "steering": {"concept": "happy.yaml", "blocks": [1], "responses": {"tokens": 6}},
    "leace": {"concept": "happy.yaml", "layers": [_LAYER], "responses": {"tokens": 6}},
    "rome": {"facts": "facts.yaml", "subject": "a dog", "block": 1},
    "memit": {"facts": "facts.yaml", "blocks": [0, 1]},
    "function_vector": {"task": "task.yaml", "block": 1, "heads": 2, "shots": 2, "prompts": 3, "trials": 2},
}
_OF_LANGUAGE = [name for name in _EDITORS if name != "uce"]


@dataclass(frozen=True)
class Case:
    """A command with a model of a family."""

    command: str
    family: str

    def __str__(self) -> str:
        return f"{self.command}, {self.family}"


COMMANDS = [
    "train", "preview", "generate", "evaluate", "bake", "laws --level weights", "laws --level behaviour",
    "laws --level fitting", "explain", "demo",
]  # fmt: skip
_LIKE_STABLE_DIFFUSION = ("laws --level weights", "laws --level behaviour", "laws --level fitting", "demo")
"""What asks nothing of SDXL that the other commands do not: it encodes, samples and trains as they do."""
CASES = [
    *(
        Case(command, family)
        for command in COMMANDS
        for family in FAMILIES
        if family != "SDXL" or command not in _LIKE_STABLE_DIFFUSION
    ),
    *(Case(f"edit {editor}", family) for family in PICTURES for editor in ("uce", "task_vector")),
    *(Case(f"edit {editor}", LANGUAGE) for editor in _OF_LANGUAGE),
]


@dataclass(frozen=True)
class Where:
    """What a command is told of the machine.

    Args:
        device: of the flag ``--device``.
        dtype: of the flag ``--dtype``.
        trainer: further keys of a training's trainer.
    """

    device: str
    dtype: str
    trainer: dict[str, Any]


class World:
    """A folder with a tiny model of a family, two sliders trained on it, and all that the commands ask for."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder, self.family = folder, family
        make = {"Stable Diffusion": tiny.stable_diffusion, "SDXL": tiny.stable_diffusion_xl}
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("model", "tuned"):
            model: Any = make[family]() if family in make else tiny_lm.language_model("llama")
            if name == "tuned":
                part = model.unet if family in make else model.lm
                next(m for m in part.modules() if isinstance(m, torch.nn.Linear)).weight.data += 0.5
                if family == LANGUAGE:
                    model.lm.model.layers[1].mlp.down_proj.weight.data += 0.5
            tiny.save(model, folder / name)
        for name, lines in (("prompts.txt", ["a person", "a dog with a hat"]), ("text.txt", _LINES)):
            (folder / name).write_text("\n".join(lines))
        (folder / "shown").mkdir()
        (folder / "shown" / "some.txt").write_text("a person\na happy dog with a hat\n")
        (folder / "facts.yaml").write_text(_FACTS)
        (folder / "task.yaml").write_text(_TASK)
        torch.manual_seed(0)
        AttributeJudge({"mood": ["sad", "happy"], "hat": ["no", "yes"]}, width=8).save(folder / "judge.safetensors")
        for name in _NAMES:
            self._write(name)

    @property
    def pictures(self) -> bool:
        """Whether the model is one of pictures."""
        return self.family != LANGUAGE

    def _write(self, name: str) -> None:
        """A concept, and the configuration of its training."""
        prompts = str(self.folder / "prompts.txt")
        measure = {"attribute": "mood", "value": "happy"} if self.pictures else {"attribute": "length"}
        concept: dict[str, Any] = {"name": name, "target": "a person", "measure": {**measure, "prompts": prompts}}
        concept |= {"positives": [f"a {name} person"], "negatives": ["a sad person"]}
        concept |= {} if self.pictures else {"modality": "text", "contexts": ["day", "the dog"]}
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(concept))
        config = yaml.safe_load(yaml.safe_dump(RUN))
        config["model"]["backbone"] = {
            "class_path": _BACKBONES[self.family], "init_args": {"model": str(self.folder / "model")},
        }  # fmt: skip
        config["data"]["concept"] = str(self.folder / f"{name}.yaml")
        config["trainer"] |= {"max_steps": 2, "accelerator": "auto", "callbacks": self._callbacks()}
        if not self.pictures:
            config["model"]["states"] = {
                "class_path": "sliders.training.states.Responses", "init_args": {"sampled": 4, "tokens": 4},
            }  # fmt: skip
            config["model"] |= {"loss": {"class_path": "sliders.losses.erasure.LogProbabilityLoss"}}
            config["model"] |= {"targets": ["full"]}
        (self.folder / f"{name}_run.yaml").write_text(yaml.safe_dump(config))

    def _callbacks(self) -> list[dict[str, Any]]:
        how = {"steps": 2} if self.pictures else {"tokens": 4, "neutral": str(self.folder / "text.txt")}
        judge = str(self.folder / "judge.safetensors") if self.pictures else None
        shown = {"judge": judge, "scenes": 2, "how": how}
        kinds = {"Probe": {**shown, "every": 1}, "FinalReport": {**shown, "dials": [-1, 0, 1]}}
        place = "sliders.training.callbacks"
        return [{"class_path": f"{place}.{name}", "init_args": given} for name, given in kinds.items()]

    def train(self, name: str, runs: Path, trainer: dict[str, Any], *more: object) -> Ended:
        """A short run."""
        config = yaml.safe_load((self.folder / f"{name}_run.yaml").read_text())
        config["trainer"] |= trainer
        file = runs / f"{name}.yaml"
        runs.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(config))
        return run(train.main, "--config", file, "--runs", runs, *more)

    def sliders(self) -> list[Path]:
        """Two, with the configurations that they were trained by; trained on the CPU when they are first asked for."""
        found = []
        for name in _NAMES:
            place = self.folder / "runs" / name
            if not place.is_dir():
                ended = self.train(name, self.folder / "runs", {"accelerator": "cpu", "callbacks": None})
                assert ended.code == 0, ended.err
            found.append(place / f"{name}.safetensors" if self.pictures else place / name)
        return found


def command(case: Case, world: World, out: Path, where: Where, slider: Path | None = None) -> list[object]:
    """The words after ``sliders``, and what they write goes to ``out``; ``slider`` is turned instead of the world's."""
    named, *level = case.command.split(" ")
    model = world.folder / "model"
    whose = ["--base", model]
    there = ["--device", where.device, "--dtype", where.dtype]
    shown = (
        ["--sampling.steps", 2] if world.pictures
        else ["--speaking.tokens", 4, "--speaking.neutral", world.folder / "text.txt"]
    )  # fmt: skip
    judged = ["--judge", world.folder / "judge.safetensors"] if world.pictures else []
    concept, any_base = world.folder / "happy.yaml", ["--any_base", "true"]
    if named == "edit":
        (editor,) = level
        config = out / "editor.yaml"
        config.write_text(yaml.safe_dump({"editor": _editor(world, editor)}))
        return ["edit", editor, "--config", config, "--out", out / "edit.safetensors", *whose, *there]
    one, two = world.sliders() if slider is None else [slider] * 2
    if named == "preview":
        asked = [concept, *whose, *judged, "--amounts", "[1, 2]", "--pictures", 2, *shown]
        return ["preview", *asked, "--out", out, *there]
    if named == "generate":
        asked = ["a person", "--slider", one, *whose, *shown, *any_base]
        return ["generate", *asked, *(["--out", out / "grid.png"] if world.pictures else []), *there]
    if named == "evaluate":
        asked = [one, *whose, *judged, "--dials", "[-1, 1]", "--pictures", 2, *shown, *any_base]
        return ["evaluate", *asked, *(["--oracle", "true"] if world.pictures else []), "--out", out, *there]
    if named == "bake":
        return ["bake", one, out / "model", *whose, *any_base, *there]
    if named == "explain":
        return ["explain", one, "--base", model, "--words", 4, "--out", out, *any_base, *there]
    asked = [f"[{one}, {two}]", *level, *whose, "--scenes", 2, *shown, *any_base, "--out", out, *there]
    if level[-1] == "behaviour":
        asked += ["--twin", f"[{two}, {one}]", "--prompts", '["a dog", "a person"]']
    if level[-1] == "fitting":
        asked += ["--seeds", 2, "--steps", 1, "--prompts", '["a dog", "a person"]']
    return ["laws", *asked]


def _editor(world: World, name: str) -> dict[str, Any]:
    """An editor's configuration with the files of this world."""
    fields = dict(_EDITORS[name])
    for key in ("tuned", "concept", "facts", "task"):
        if key in fields:
            fields[key] = str(world.folder / fields[key])
    if name in ("rome", "memit"):
        text = str(world.folder / "text.txt")
        fields["covariance"] = {"texts": [text]}
        fields["search"] = {"steps": 3, "prefixes": {"texts": text, "count": 2, "words": 3}}
    return fields


@contextmanager
def at(world: World, out: Path) -> Iterator[None]:
    """Ready to run a command: few prompts to explain with, and a cache of its own."""
    prompts = dict.fromkeys(("image", "text"), world.folder / "shown")
    with (
        mock.patch("sliders.studies.explain.reads.PROMPTS", prompts),
        mock.patch.dict("os.environ", {"XDG_CACHE_HOME": str(out / "cache")}),
    ):
        yield


def run_case(case: Case, world: World, out: Path, where: Where) -> None:
    """Run a command as the shell would.

    Raises:
        AssertionError: it did not end well, or wrote nothing.
    """
    out.mkdir(parents=True, exist_ok=True)
    with at(world, out):
        if case.command == "demo":
            _use_page(world, out, where)
            return
        if case.command == "train":
            given = ["--model.backbone.init_args.dtype", where.dtype]
            ended = world.train("happy", out, where.trainer, *given)
        else:
            ended = run(cli.main, *command(case, world, out, where))
        assert ended.code == 0, ended.err
        if (edit := out / "edit.safetensors").is_file():  # and it is turned
            ended = run(cli.main, *command(Case("generate", case.family), world, out, where, edit))
            assert ended.code == 0, ended.err
    written = [file for file in out.rglob("*") if file.is_file() and "cache" not in file.parts]
    assert written or (case.command == "generate" and ">" in ended.out)


def _use_page(world: World, out: Path, where: Where) -> None:
    """Open the page, without a server, and ask for one of each thing."""
    sessions: list[Session] = []
    model, both = world.folder / "model", world.sliders()
    asked = ["--device", where.device, "--dtype", where.dtype, "--out", out, "--sliders", f"[{both[0]}, {both[1]}]"]
    if world.pictures:
        asked += ["--base", model]
    else:
        other = out / "pictures"
        tiny.save(tiny.stable_diffusion(), other)
        asked += ["--base", other, "--language", model]
    with (
        mock.patch("sliders.page.app.launch", lambda session, *_, **__: sessions.append(session)),
        mock.patch("sliders.page.opening.check_base"),
    ):
        ended = run(cli.main, "demo", *asked)
    assert ended.code == 0, ended.err
    (session,) = sessions
    keys, canvas = list(_NAMES), Canvas("a person", 1, 2, 2.0)
    positions: dict[str, float] = {keys[0]: 1.0, keys[1]: -1.0}
    if world.pictures:
        assert session.draw("me", canvas, positions).turned.isfinite().all()
    else:
        with mock.patch("sliders.page.uploads.check"):
            assert list(session.write("me", Speech("the dog", tokens=4), positions))
    assert session.relations(keys)
    assert session.measure("me", canvas, keys, 1)
    assert session.explain("me", keys[0])


def table() -> str:
    """Which commands are run on what, as the documentation shows it."""
    head = ("command", "families", "CPU, float32", "CPU, bfloat16", "device check", "GPU")
    ran = ("`test_on_the_cpu_in_float32`", "`test_on_the_cpu_in_bfloat16`", "`test_on_a_pretended_accelerator`")
    rows: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    for name in dict.fromkeys(case.command for case in CASES):
        families = ", ".join(case.family for case in CASES if case.command == name)
        rows.append((f"`{name}`", families, *ran, "`test_gpu.py`, not measured"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

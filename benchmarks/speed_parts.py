"""What training and dials cost, against what they cannot cost less than."""

import gc
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.timing import Clock, interleaved
from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.batch import repeat
from sliders.concept import Concept
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample
from sliders.formats import diffusers
from sliders.losses.erasure import AbstractLoss, ErasureLoss, Prediction, progress
from sliders.runtime.adapter import Adapter
from sliders.runtime.attach import attach
from sliders.runtime.dials import Dials
from sliders.runtime.layers import weight_shape
from sliders.teacher.teacher import Teacher
from sliders.training.data import ConceptData
from sliders.training.states import Pool, StateSource

Rows = list[dict[str, str | float]]
MODEL = "data/avatars/model"


def random_slider(backbone: AbstractBackbone, name: str, targets: Sequence[str], rank: int, seed: int) -> Slider:
    """One that costs what a trained one costs."""
    chance = torch.Generator().manual_seed(seed)
    updates: dict[str, LowRank] = {}
    for module in backbone.select_targets(targets):
        shape = weight_shape(backbone, module)
        inputs = torch.Size(shape[1:]).numel()
        up, down = (torch.randn(*size, generator=chance) * 0.01 for size in ((shape[0], rank), (rank, inputs)))
        updates[module] = LowRank(up, down, shape)
    return Slider(name, Translation(updates))


def base() -> UNetBackbone:
    """The embedded model."""
    backbone = UNetBackbone(MODEL)
    backbone.load()
    return backbone


def student(backbone: UNetBackbone, adapter: Adapter, rows: int) -> Callable[[], None]:
    """The student's forward and backward alone."""
    state = {"latents": backbone.start(range(rows)), "timestep": torch.full((rows,), 500)}
    conditioning, dial = backbone.encode(["a person"] * rows), torch.ones(rows)

    def run() -> None:
        with adapter.dial(dial):
            loss = backbone.predict(state, conditioning).square().mean()
        with adapter.dial(dial, again=True):  # checkpointing computes layers anew
            loss.backward()

    return run


def training_step(
    backbone: AbstractBackbone, states: StateSource, teacher: Teacher, adapter: Adapter, loss: AbstractLoss,
    data: ConceptData,
) -> Callable[[], None]:  # fmt: skip
    """What `SliderModule` does in a step, and the optimizer's part."""
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    times, batch = len(data.signs), data.step_batch(0)

    def step() -> None:
        answered = states.draw(teacher, adapter, batch)
        dial = torch.cat([sign * batch.magnitudes for sign in data.signs])
        with adapter.dial(dial):
            said = backbone.predict(repeat(answered.state, times), teacher.targets(answered.question.repeat(times)))
        prediction = Prediction(said, **repeat(answered.answers(), times), dial=dial)
        loss(prediction).mean().backward()
        progress(prediction, loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_cost(concept: Concept, steps: int, repeats: int, now: Clock) -> Rows:
    """A training step against the student's forward and backward; what filling the pool adds to each step of a run."""
    backbone, data, pool = base(), ConceptData(concept), Pool()
    layers = backbone.select_targets(["noxattn"])
    with Adapter(backbone, layers, 4, 4.0) as adapter:
        teacher = Teacher(backbone, concept, adapter)
        step = training_step(backbone, pool, teacher, adapter, ErasureLoss(), data)

        def fill() -> None:
            pool._contents = None
            pool.draw(teacher, adapter, data.step_batch(0))

        first = interleaved({"fill": fill}, 1, now, warm=False)["fill"]
        alone = student(backbone, adapter, data.batch_size * len(data.signs))
        seconds = interleaved({"alone": alone, "step": step}, repeats, now)
        later = interleaved({"fill": fill}, 1, now, warm=False)["fill"]  # the slider is not the identity any more
        refills, made_at = 0, pool.kept_until(0)
        while made_at < steps:
            refills, made_at = refills + 1, pool.kept_until(int(made_at))
        filled = (first + later * refills) / steps
    other: dict[str, Callable[[], None]] = {}
    with ExitStack() as stack:
        for name, made in (
            ("student alone", UNetBackbone(MODEL)),
            ("with checkpointing", UNetBackbone(MODEL, checkpointing=True)),
            ("without channels_last", UNetBackbone(MODEL, channels_last=False)),
            ("with torch.compile", UNetBackbone(MODEL, compile=True)),
        ):
            made.load()
            adapter = stack.enter_context(Adapter(made, layers, 4, 4.0))
            other[name] = student(made, adapter, data.batch_size * len(data.signs))
        options_cost = interleaved(other, repeats, now)
    ours = {
        "student's forward and backward": seconds["alone"],
        "a step between two fillings": seconds["step"],
        f"a step of {steps}, with its share of the fillings": seconds["step"] + filled,
    }
    return [
        *({"what": k, "ms": v * 1e3, "ratio": v / seconds["alone"]} for k, v in ours.items()),
        *({"what": k, "ms": v * 1e3, "ratio": v / options_cost["student alone"]} for k, v in options_cost.items()),
    ]


@torch.no_grad()
def text_keys(repeats: int, now: Clock) -> Rows:
    """The share of the cross-attention's keys and values, which depend on the prompt alone, in a sampling step."""
    backbone = base()
    state = {"latents": backbone.start(range(16)), "timestep": torch.full((16,), 500)}
    conditioning = backbone.encode(["a person"] * 16)
    layers = [m for name, m in backbone.unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    seconds = interleaved(
        {
            "a prediction of 16 rows": lambda: backbone.predict(state, conditioning),
            "its keys and values of the text": lambda: [layer(conditioning["prompt_embeds"]) for layer in layers],
        },
        repeats,
        now,
    )
    whole = seconds["a prediction of 16 rows"]
    return [{"what": name, "ms": value * 1e3, "ratio": value / whole} for name, value in seconds.items()]


def _memory() -> float:
    """Megabytes that the process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@torch.no_grad()
def after_a_move(backbone: UNetBackbone, turned: Dials, now: Clock) -> float:
    """What the first call after a move of a dial takes beyond the next one."""
    state = {"latents": backbone.start([0]), "timestep": torch.tensor([500])}
    conditioning = backbone.encode(["a person"])

    def call() -> None:
        backbone.predict(state, conditioning)

    def move() -> None:
        turned.set({turned.names[0]: 0.3})
        call()

    seconds = interleaved({"moved": move, "again": call}, 5, now)
    return seconds["moved"] - seconds["again"]


def dials(counts: Sequence[int], batch: int, steps: int, repeats: int, moves: int, now: Clock) -> Rows:
    """Pictures with K sliders, ours and diffusers' adapters, against the base; moving a dial; memory."""
    backbone, other = base(), base()
    sliders = [random_slider(backbone, f"s{k}", ["noxattn"], 4, k) for k in range(max(counts))]
    wanted, how = [Scene("a person", k) for k in range(batch)], Sampling(steps=steps, batch=batch)
    found: Rows = []
    loaded = 0
    for count in sorted(counts):
        used = sliders[:count]
        on = {one.name: 0.5 for one in used}
        with tempfile.TemporaryDirectory() as folder:
            for one in sliders[loaded:count]:
                diffusers.save(one, Path(folder) / f"{one.name}.safetensors")
                other.pipeline.load_lora_weights(f"{folder}/{one.name}.safetensors", adapter_name=one.name)
        loaded = count
        other.pipeline.set_adapters(list(on), list(on.values()))
        with ExitStack() as stack:
            turned = stack.enter_context(attach(backbone, used))

            def ours(turned: Dials = turned, positions: Mapping[str, float | torch.Tensor] = on) -> None:
                with turned.turned(positions):
                    sample(backbone, wanted, how)

            rows = {name: torch.full((batch,), position) for name, position in on.items()}
            runs = {
                "base": lambda: sample(backbone, wanted, how),  # its dials at 0
                "ours": ours,
                "rows": lambda ours=ours, rows=rows: ours(positions=rows),
                "diffusers": lambda: sample(other, wanted, how),
            }
            if batch == 1:
                del runs["rows"]  # one row's dial is all rows'
            seconds = interleaved(runs, repeats, now)
            for k in range(20):
                turned.set({used[0].name: k / 10})
            before, began = _memory(), now()
            for k in range(moves):
                turned.set({used[0].name: 0.1 + k / moves})
            moving = (now() - began) / moves
            first = after_a_move(backbone, turned, now)
        others = ("ours", "rows", "diffusers")
        ratio = {f"{name} / base": seconds[name] / seconds["base"] if name in seconds else "" for name in others}
        found.append(
            {"sliders": count, "pictures": batch, "base s": seconds["base"], **ratio, "move ms": moving * 1e3,
             "next call + ms": first * 1e3, "growth MB": _memory() - before}
        )  # fmt: skip
    return found


def scaling(concept: Concept, repeats: int, now: Clock) -> Rows:
    """The student over rank and batch; the pool over its size and the number of prompts."""
    backbone = base()
    layers = backbone.select_targets(["noxattn"])
    found: Rows = []
    for rank, rows in ((1, 16), (4, 16), (16, 16), (64, 16), (4, 4), (4, 64)):
        with Adapter(backbone, layers, rank, float(rank)) as adapter:
            seconds = interleaved({"student": student(backbone, adapter, rows)}, repeats, now)["student"]
        found.append({"what": f"student, rank {rank}, {rows} rows", "ms": seconds * 1e3})
    for trajectories, negatives in ((8, 4), (16, 4), (32, 4), (16, 1)):
        few = Concept(concept.name, concept.target, concept.positives, concept.negatives[:negatives], concept.contexts)
        with Adapter(backbone, layers, 4, 4.0) as adapter:
            teacher, pool = Teacher(backbone, few, adapter), Pool(trajectories)
            began = now()
            pool.draw(teacher, adapter, ConceptData(few).step_batch(0))
        what = f"pool of {trajectories} trajectories, {negatives} negatives, {teacher.evaluations} evaluations"
        found.append({"what": what, "ms": (now() - began) * 1e3})
    return found

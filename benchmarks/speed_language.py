"""What dials and training cost on a language model."""

import copy
from collections.abc import Mapping, Sequence

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from benchmarks.speed_parts import Rows, random_slider, training_step
from benchmarks.timing import Clock, interleaved
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept
from sliders.losses.erasure import LogProbabilityLoss
from sliders.runtime.adapter import Adapter
from sliders.runtime.attach import attach
from sliders.runtime.dials import Dials
from sliders.teacher.teacher import Teacher
from sliders.training.data import ConceptData, StepBatch
from sliders.training.states import AnsweredStates, Responses, StateSource


def language(counts: Sequence[int], tokens: int, repeats: int, now: Clock, model: str = "smollm2") -> Rows:
    """Tokens a second with K sliders, ours and PEFT's adapters, against the base."""
    backbone = CausalLMBackbone(model)
    backbone.load()
    other = CausalLMBackbone(model)
    other.use(copy.deepcopy(backbone.lm), backbone.tokenizer)
    sliders = [random_slider(backbone, f"s{k}", ["full"], 8, k) for k in range(max(counts))]
    asked = backbone.encode(["Tell me about the sea."])
    names = "|".join(one.removeprefix("lm.").replace(".", r"\.") for one in backbone.select_targets(["full"]))
    found: Rows = []
    present = 0
    for count in counts:
        for k in range(present, count):
            config = LoraConfig(r=8, lora_alpha=8, target_modules=names, init_lora_weights=False)
            inject_adapter_in_model(config, other.lm, adapter_name=f"s{k}")
        present = count
        for layer in other.lm.modules():
            if isinstance(layer, LoraLayer):
                layer.set_adapter([f"s{k}" for k in range(count)])
        with attach(backbone, sliders[:count]) as turned:
            on = {one.name: 0.01 for one in sliders[:count]}

            def said(which: CausalLMBackbone) -> int:
                return sum(1 for _ in which.stream(asked, [0], tokens))

            def ours(turned: Dials = turned, on: Mapping[str, float] = on) -> int:
                with turned.turned(on):
                    return said(backbone)

            backbone.lm.generation_config.eos_token_id = other.lm.generation_config.eos_token_id = -1  # to the end
            runs = {"base": lambda: said(backbone), "ours": ours, "peft": lambda: said(other)}
            seconds = interleaved(runs, repeats, now)
        found.append({"sliders": count, **{f"{name} tokens/s": tokens / s for name, s in seconds.items()}})
    return found


class AskedAnew(StateSource):
    """Another source's states, about which the teacher is asked in every step, though its answers are there.

    Args:
        states: that source.
        chunk: rows the teacher is asked about in one call.
    """

    def __init__(self, states: StateSource, chunk: int = 64) -> None:
        self.states, self.chunk = states, chunk

    def draw(self, teacher: Teacher, adapter: Adapter, batch: StepBatch) -> AnsweredStates:
        kept = self.states.draw(teacher, adapter, batch)
        base, direction = teacher.answer(kept.state, kept.question, self.chunk)
        return AnsweredStates(kept.state, kept.question, base, direction, kept.weight)


def language_training(concept: Concept, steps: int, repeats: int, now: Clock, model: str = "smollm2") -> Rows:
    """A run with the teacher's answers cached against one with the teacher's passes in every step.

    Both see the same states and answers, so that their sliders are the same (`tests/test_benchmarks.py`).
    """
    backbone, data = CausalLMBackbone(model), ConceptData(concept, batch_size=4, magnitude=(0.3, 1.5))
    backbone.load()
    pool = Responses(sampled=48, tokens=40)
    with Adapter(backbone, backbone.select_targets(["full"]), 8, 8.0) as adapter:
        teacher, loss = Teacher(backbone, concept, adapter), LogProbabilityLoss(1.5)

        def fill() -> None:
            pool._contents = None
            pool.draw(teacher, adapter, data.step_batch(0))

        filling = interleaved({"fill": fill}, 1, now, warm=False)["fill"]
        assert pool._contents is not None
        answered = pool._contents.answered
        asking = {"ask": lambda: teacher.answer(answered.state, answered.question, pool.chunk)}
        answers = interleaved(asking, 1, now, warm=False)["ask"]
        sources: dict[str, StateSource] = {"cached": pool, "passes in every step": AskedAnew(pool)}
        runs = {name: training_step(backbone, s, teacher, adapter, loss, data) for name, s in sources.items()}
        seconds = interleaved(runs, repeats, now)
    whole = {
        "cached": filling + steps * seconds["cached"],
        "passes in every step": filling - answers + steps * seconds["passes in every step"],
    }
    return [
        {
            "teacher": name,
            "step s": seconds[name],
            f"run of {steps} s": whole[name],
            "ratio": whole[name] / whole["cached"],
        }
        for name in whole
    ]

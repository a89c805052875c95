"""Where the states come from that a slider is trained on."""

from sliders.training.states.responses import Responses
from sliders.training.states.source import AnsweredStates, Pooled, StateSource, choose_question
from sliders.training.states.trajectories import Pool, Rollout

__all__ = ["AnsweredStates", "Pool", "Pooled", "Responses", "Rollout", "StateSource", "choose_question"]

"""Optimizers as pairs of pure functions, `init(params)` and `update(grads, state, params)`.

>>> import torch
>>> from ftrain import optim
>>> optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3))
>>> params = {"w": torch.ones(2, 2)}
>>> state = optimizer.init(params)
>>> updates, state = optimizer.update({"w": torch.ones(2, 2)}, state, params)
>>> params = optim.apply_updates(params, updates)

Read next: `protocol.py`, the pair; `adam.py`, a whole algorithm.
"""

from ftrain.core.norm import global_norm
from ftrain.core.optimizer import apply_updates
from ftrain.optim.adam import AdamState, ScaleByAdamState, adam, adamw, scale_by_adam
from ftrain.optim.chain import chain, identity
from ftrain.optim.clip import clip_by_global_norm
from ftrain.optim.masks import Mask, everything, matrices
from ftrain.optim.momentum import TraceState, trace
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, Init, Schedule, Update
from ftrain.optim.scale import ScaleByLearningRateState, scale, scale_by_learning_rate
from ftrain.optim.schedules import (
    constant,
    cosine,
    cosine_restarts,
    exponential,
    inverse_sqrt,
    join,
    linear,
    linear_warmup,
    one_cycle,
    piecewise_constant,
    plot_schedule,
    polynomial,
    step,
    warmup_cosine,
    warmup_stable_decay,
)
from ftrain.optim.sgd import SGDState, sgd
from ftrain.optim.weight_decay import add_decayed_weights

__all__ = [
    "AdamState",
    "GradientTransformation",
    "Hyperparameter",
    "Init",
    "Mask",
    "SGDState",
    "ScaleByAdamState",
    "ScaleByLearningRateState",
    "Schedule",
    "TraceState",
    "Update",
    "adam",
    "adamw",
    "add_decayed_weights",
    "apply_updates",
    "chain",
    "clip_by_global_norm",
    "constant",
    "cosine",
    "cosine_restarts",
    "everything",
    "exponential",
    "global_norm",
    "identity",
    "inverse_sqrt",
    "join",
    "linear",
    "linear_warmup",
    "matrices",
    "one_cycle",
    "piecewise_constant",
    "plot_schedule",
    "polynomial",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "sgd",
    "step",
    "trace",
    "warmup_cosine",
    "warmup_stable_decay",
]

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
from ftrain.optim.adadelta import AdadeltaState, adadelta
from ftrain.optim.adagrad import AdagradState, adagrad
from ftrain.optim.adam import AdamState, ScaleByAdamState, adam, adamw, scale_by_adam
from ftrain.optim.adamax import AdamaxState, adamax
from ftrain.optim.amsgrad import AMSGradState, amsgrad
from ftrain.optim.chain import chain, identity
from ftrain.optim.clip import clip_by_global_norm
from ftrain.optim.masks import Mask, everything, matrices
from ftrain.optim.momentum import TraceState, trace
from ftrain.optim.nadam import NAdamState, nadam
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, Init, Schedule, Update
from ftrain.optim.radam import RAdamState, radam
from ftrain.optim.rmsprop import RMSpropState, rmsprop
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
    "AMSGradState",
    "AdadeltaState",
    "AdagradState",
    "AdamState",
    "AdamaxState",
    "GradientTransformation",
    "Hyperparameter",
    "Init",
    "Mask",
    "NAdamState",
    "RAdamState",
    "RMSpropState",
    "SGDState",
    "ScaleByAdamState",
    "ScaleByLearningRateState",
    "Schedule",
    "TraceState",
    "Update",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "add_decayed_weights",
    "amsgrad",
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
    "nadam",
    "one_cycle",
    "piecewise_constant",
    "plot_schedule",
    "polynomial",
    "radam",
    "rmsprop",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "sgd",
    "step",
    "trace",
    "warmup_cosine",
    "warmup_stable_decay",
]

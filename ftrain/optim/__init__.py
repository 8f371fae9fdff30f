"""Optimizers as pairs of pure functions, `init(params)` and `update(grads, state, params)`.

Example:
    >>> import torch
    >>> from ftrain import optim
    >>> optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3))
    >>> params = {"w": torch.ones(2, 2)}
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update({"w": torch.ones(2, 2)}, state, params)
    >>> params = optim.apply_updates(params, updates)

    Read next: `protocol.py`, which defines the pair; `adam.py`, a complete algorithm.
"""

from ftrain.core.norm import global_norm
from ftrain.core.optimizer import apply_updates
from ftrain.optim.adabelief import AdaBeliefState, adabelief
from ftrain.optim.adadelta import AdadeltaState, adadelta
from ftrain.optim.adafactor import AdafactorState, adafactor
from ftrain.optim.adagrad import AdagradState, adagrad
from ftrain.optim.adam import AdamState, ScaleByAdamState, adam, adamw, scale_by_adam
from ftrain.optim.adamax import AdamaxState, adamax
from ftrain.optim.adan import AdanState, adan
from ftrain.optim.amsgrad import AMSGradState, amsgrad
from ftrain.optim.asgd import ASGDState, asgd
from ftrain.optim.averages import EmaState, SwaState, ema, swa
from ftrain.optim.chain import chain, identity
from ftrain.optim.clip import adaptive_clip, clip, clip_by_block_rms, clip_by_global_norm
from ftrain.optim.directions import ScaleByLionState, ScaleByRmsState, scale_by_lion, scale_by_rms
from ftrain.optim.from_torch import FromTorchState, from_torch
from ftrain.optim.get import get
from ftrain.optim.lamb import LAMBState, lamb
from ftrain.optim.lars import LARSState, lars
from ftrain.optim.lbfgs import LBFGSState, ScaleByLBFGSState, lbfgs, scale_by_lbfgs
from ftrain.optim.lion import LionState, lion
from ftrain.optim.lookahead import LookaheadState, lookahead
from ftrain.optim.masked import freeze, masked, set_to_zero
from ftrain.optim.masks import Mask, everything, matching, matrices
from ftrain.optim.momentum import TraceState, trace
from ftrain.optim.multi_steps import MultiStepsState, multi_steps
from ftrain.optim.muon import MuonState, muon, orthogonalize
from ftrain.optim.nadam import NAdamState, nadam
from ftrain.optim.noise import AddNoiseState, add_noise
from ftrain.optim.normalize import (
    centralize,
    normalize_by_update_norm,
    scale_by_param_block_rms,
    scale_by_sign,
    scale_by_trust_ratio,
)
from ftrain.optim.partition import partition
from ftrain.optim.plateau import ReduceOnPlateauState, reduce_on_plateau
from ftrain.optim.prodigy import ProdigyState, prodigy
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, Init, Schedule, Update
from ftrain.optim.radam import RAdamState, radam
from ftrain.optim.rmsprop import RMSpropState, rmsprop
from ftrain.optim.rprop import RpropState, rprop
from ftrain.optim.sam import asam, sam
from ftrain.optim.scale import (
    ScaleByLearningRateState,
    ScaleByScheduleState,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from ftrain.optim.schedule_free import (
    ScheduleFreeState,
    schedule_free_adamw,
    schedule_free_eval_params,
    schedule_free_sgd,
)
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
    warmup_linear,
    warmup_stable_decay,
)
from ftrain.optim.sgd import SGDState, sgd
from ftrain.optim.skip import SkipState, skip_large_updates, skip_nonfinite
from ftrain.optim.soap import SOAPState, soap
from ftrain.optim.sophia import SophiaState, hutchinson_diagonal, sophia
from ftrain.optim.state_dicts import export_state_dict, import_state_dict
from ftrain.optim.weight_decay import add_decayed_weights
from ftrain.optim.with_hyperparams import HyperparamsState, set_hyperparams, with_hyperparams
from ftrain.optim.yogi import YogiState, yogi
from ftrain.optim.zero_nans import ZeroNansState, zero_nans

__all__ = [
    "AMSGradState",
    "ASGDState",
    "AdaBeliefState",
    "AdadeltaState",
    "AdafactorState",
    "AdagradState",
    "AdamState",
    "AdamaxState",
    "AdanState",
    "AddNoiseState",
    "EmaState",
    "FromTorchState",
    "GradientTransformation",
    "Hyperparameter",
    "HyperparamsState",
    "Init",
    "LAMBState",
    "LARSState",
    "LBFGSState",
    "LionState",
    "LookaheadState",
    "Mask",
    "MultiStepsState",
    "MuonState",
    "NAdamState",
    "ProdigyState",
    "RAdamState",
    "RMSpropState",
    "ReduceOnPlateauState",
    "RpropState",
    "SGDState",
    "SOAPState",
    "ScaleByAdamState",
    "ScaleByLBFGSState",
    "ScaleByLearningRateState",
    "ScaleByLionState",
    "ScaleByRmsState",
    "ScaleByScheduleState",
    "Schedule",
    "ScheduleFreeState",
    "SkipState",
    "SophiaState",
    "SwaState",
    "TraceState",
    "Update",
    "YogiState",
    "ZeroNansState",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "adaptive_clip",
    "add_decayed_weights",
    "add_noise",
    "amsgrad",
    "apply_updates",
    "asam",
    "asgd",
    "centralize",
    "chain",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "constant",
    "cosine",
    "cosine_restarts",
    "ema",
    "everything",
    "exponential",
    "export_state_dict",
    "freeze",
    "from_torch",
    "get",
    "global_norm",
    "hutchinson_diagonal",
    "identity",
    "import_state_dict",
    "inverse_sqrt",
    "join",
    "lamb",
    "lars",
    "lbfgs",
    "linear",
    "linear_warmup",
    "lion",
    "lookahead",
    "masked",
    "matching",
    "matrices",
    "multi_steps",
    "muon",
    "nadam",
    "normalize_by_update_norm",
    "one_cycle",
    "orthogonalize",
    "partition",
    "piecewise_constant",
    "plot_schedule",
    "polynomial",
    "prodigy",
    "radam",
    "reduce_on_plateau",
    "rmsprop",
    "rprop",
    "sam",
    "scale",
    "scale_by_adam",
    "scale_by_lbfgs",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_param_block_rms",
    "scale_by_rms",
    "scale_by_schedule",
    "scale_by_sign",
    "scale_by_trust_ratio",
    "schedule_free_adamw",
    "schedule_free_eval_params",
    "schedule_free_sgd",
    "set_hyperparams",
    "set_to_zero",
    "sgd",
    "skip_large_updates",
    "skip_nonfinite",
    "soap",
    "sophia",
    "step",
    "swa",
    "trace",
    "warmup_cosine",
    "warmup_linear",
    "warmup_stable_decay",
    "with_hyperparams",
    "yogi",
    "zero_nans",
]

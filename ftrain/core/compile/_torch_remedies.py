"""Functions of torch that cannot be traced, with the reason and the remedy for each."""

from __future__ import annotations

__all__ = ["BACKWARD", "BY_FUNCTION", "BY_TORCH_LINE"]

Remedy = tuple[str, str]  # what the function does, and one sentence with the remedy

_OUTSIDE = (
    "Take this gradient without ftrain.compile (ftrain.value_and_grad alone computes it), and compile "
    "the update."
)
_COVARIANCE = (
    "torch.cov and torch.corrcoef compare the values of sums of weights",
    "Write the formula: centered = x - x.mean(1, keepdim=True), then "
    "centered @ centered.mT / (x.shape[1] - 1) is torch.cov(x), and cov / (s[:, None] * s) with "
    "s = cov.diagonal().sqrt() is torch.corrcoef(x).",
)
_PACKED = (
    "a packed sequence has a shape that depends on the lengths",
    "Leave the sequences padded, and mask what the padding contributes to the loss: "
    "torch.where(mask, per_token, 0).sum().",
)
_CTC = ("the alignments of a CTC loss depend on the values of the lengths", _OUTSIDE)
_LEAST_SQUARES = (
    "the shape of the residuals of torch.linalg.lstsq depends on the rank of the matrix",
    "Write torch.linalg.pinv(a) @ b, or torch.linalg.solve(a.mT @ a, a.mT @ b) for a matrix of full "
    "column rank.",
)
_PHASE = (
    "the gradient of the singular vectors of a complex matrix compares values, since torch checks that "
    "the loss does not depend on the phases of these vectors",
    _OUTSIDE,
)
_MASK = (
    "a transformer layer compares the values of its mask with those of a causal mask",
    "Say whether the mask is causal: pass is_causal=True or is_causal=False beside it (tgt_is_causal= "
    "in a decoder).",
)
_CUMULATIVE = (
    "a batch norm with momentum=None reads the number of batches so far",
    "Give it a momentum, such as torch's default momentum=0.1.",
)
_VARIANCE = (
    "gaussian_nll_loss checks if a variance is negative",
    "Write the formula, for variances of at least eps: "
    "0.5 * (var.log() + (input - target) ** 2 / var).mean().",
)
_TRUNCATED = (
    "trunc_normal_ draws again until all numbers are within the bounds",
    "Draw before the compiled function, with the same `keyed`, and pass the tensor in; or draw "
    "u = ftrain.random.uniform(key, shape, minval=lower, maxval=upper) with lower and upper the normal "
    "distribution's values at the bounds, and take torch.special.ndtri(u).",
)

_CLUSTERS = (
    "an adaptive softmax sorts the targets into clusters by their values",
    "Take the loss from all clusters: -layer.log_prob(x).gather(1, target[:, None]).mean().",
)
_REPEATED = (
    "the shape of the result of repeat_interleave depends on the numbers of repeats",
    "Pass the size of the result: x.repeat_interleave(repeats, output_size=n).",
)
_VALIDATION = (
    "a distribution checks the values of its arguments",
    "Leave validate_args=True out: without it a compiled function skips these checks.",
)

#: Remedies for torch's Python code, by file (inside torch's folder) and function. They hold for the
#: helpers in the same file too.
BY_TORCH_LINE: dict[tuple[str, str], Remedy] = {
    ("nn/functional.py", "gaussian_nll_loss"): _VARIANCE,
    ("nn/modules/adaptive.py", "forward"): _CLUSTERS,
    ("nn/modules/batchnorm.py", "forward"): _CUMULATIVE,
    ("nn/modules/transformer.py", "_detect_is_causal_mask"): _MASK,
    ("nn/init.py", "_no_grad_trunc_normal_"): _TRUNCATED,
    ("nn/utils/rnn.py", "pack_padded_sequence"): _PACKED,
    ("nn/utils/rnn.py", "pad_packed_sequence"): _PACKED,
    ("nn/modules/rnn.py", "forward"): _PACKED,
    ("nn/functional.py", "ctc_loss"): _CTC,
    ("distributions/distribution.py", "__init__"): _VALIDATION,
    ("distributions/distribution.py", "_validate_sample"): _VALIDATION,
}
#: Remedies for functions written in C++, by name.
BY_FUNCTION: dict[str, Remedy] = {
    "torch.cov": _COVARIANCE,
    "torch.corrcoef": _COVARIANCE,
    "torch.combinations": (
        "the shape of the result of torch.combinations depends on the values of a mask",
        "Compute the indices outside of the compiled function, i = torch.combinations(torch.arange(n)), "
        "and take x[i] inside.",
    ),
    "torch.Tensor.repeat_interleave": _REPEATED,
    "torch.repeat_interleave": _REPEATED,
    "torch.nn.functional.ctc_loss": _CTC,
    "torch.ctc_loss": _CTC,
    "torch.linalg.lstsq": _LEAST_SQUARES,
    "torch.linalg_lstsq": _LEAST_SQUARES,
}
#: Remedies for operators of a backward pass, in which the user's line is the one that computes the
#: gradient.
BACKWARD: dict[str, Remedy] = {
    "aten._unique": (
        "the gradient of index_fill by the value that it fills in depends on the indices' values",
        "Fill by a mask instead: torch.where(mask, value, x).",
    ),
    "aten.nonzero": (
        "the gradient of x[mask] = values by the values has a shape that depends on the mask",
        "Fill by the mask instead: torch.where(mask, values, x), with one value for each element.",
    ),
    "aten._ctc_loss": _CTC,
    "aten.allclose": _PHASE,
}

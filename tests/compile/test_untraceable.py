"""Torch functions that cannot be traced: errors with torch's line and an equivalent remedy."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import random, testing
from ftrain.core.compile import _untraceable
from ftrain.core.errors import ImpureFunctionError, TraceError

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    return ftrain.compile(fn, backend="eager")


def loss_of(model: nn.Module, *args: Any, **kwargs: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    apply = ftrain.bind(model)
    params, buffers = apply.init(random.key(0))

    def loss(x: torch.Tensor) -> torch.Tensor:
        out, _ = apply(params, buffers, random.key(1), x, *args, **kwargs)  # here
        return out.sum()

    return loss


def gaussian(x: torch.Tensor) -> torch.Tensor:
    return F.gaussian_nll_loss(x, X + 1, x.square() + 1)  # here


def truncated(x: torch.Tensor) -> torch.Tensor:
    with random.keyed(random.key(0)):
        return nn.init.trunc_normal_(torch.empty(3)).sum() + x.sum()  # here


def packed(x: torch.Tensor) -> torch.Tensor:
    return nn.utils.rnn.pack_padded_sequence(x[..., None], torch.tensor([3, 2, 4, 1])).data  # here


def validated(x: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Normal(x, x.abs() + 1, validate_args=True).log_prob(x).sum()  # here


def bounds(x: torch.Tensor) -> torch.Tensor:
    return nn.Transformer.generate_square_subsequent_mask(x.sum().long()).sum()  # here


ENCODER = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 1, enable_nested_tensor=False)
LABELS, LENGTHS = torch.ones(1, 2, dtype=torch.int64), (torch.tensor([3]), torch.tensor([2]))

IN_TORCH = {
    "GaussianNLLLoss": (gaussian, "checks if a variance is negative", "0.5 * (var.log()"),
    "BatchNorm(momentum=None)": (
        loss_of(nn.BatchNorm1d(4, momentum=None)),
        "reads the number of batches",
        "momentum=0.1",
    ),
    "TransformerEncoder with a mask": (
        loss_of(ENCODER, mask=torch.zeros(3, 3)),
        "its mask with those of a causal mask",
        "is_causal=True or is_causal=False",
    ),
    "trunc_normal_": (truncated, "draws again", "torch.special.ndtri(u)"),
    "pack_padded_sequence": (packed, "a packed sequence", "Leave the sequences padded"),
    "CTCLoss": (
        lambda x: F.ctc_loss(x[:, None].log_softmax(-1), LABELS, *LENGTHS),  # here
        "values of the lengths",
        "ftrain.value_and_grad alone computes it",
    ),
    "validate_args=True": (
        validated,
        "checks the values of its arguments",
        "validate_args=True out",
    ),
    "another": (bounds, "torch's own code asks for the values", "Call that function outside"),
}


@pytest.mark.parametrize("name", IN_TORCH)
def test_untraceable_torch_python_code_raises_with_its_line_and_remedy(name: str) -> None:
    fn, what, remedy = IN_TORCH[name]
    if name == "trunc_normal_" and "erfinv" in inspect.getsource(nn.init._no_grad_trunc_normal_):
        testing.assert_same_bits(compiled(fn)(X), fn(X))  # one draw: torch 2.11
        return
    with pytest.raises(TraceError) as error:
        compiled(fn)(X)
    said = str(error.value)
    assert what in said
    assert remedy in said
    assert "# here" in said
    assert "which runs this line of torch:" in said
    assert "ftrain.cond(" not in said
    assert "x[mask]" not in said


def test_error_of_a_distribution_is_explained_also_if_torch_validates_in_a_helper_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch 2.15 has such a helper for distributions; earlier versions get one here."""
    file = torch.distributions.distribution.__file__
    source = compile("def all_true(valid): return bool(is_all_true(valid))", file, "exec")
    names = {"is_all_true": torch._is_all_true}
    exec(source, names)
    monkeypatch.setattr(torch, "_is_all_true", names["all_true"])
    with pytest.raises(TraceError, match="a distribution checks the values of its arguments"):
        compiled(validated)(X)


IN_CPP = {
    "cov": (torch.cov, "values of sums of weights", "centered @ centered.mT"),
    "corrcoef": (torch.corrcoef, "values of sums of weights", "torch.corrcoef(x)"),
    "lstsq": (lambda x: torch.linalg.lstsq(x, x)[0], "depends on the rank", "pinv(a) @ b"),
    "combinations": (lambda x: torch.combinations(x[0]), "values of a mask", "take x[i] inside"),
    "repeat_interleave": (
        lambda x: x.repeat_interleave(torch.tensor([1, 2, 0]), dim=0),
        "depends on the numbers of repeats",
        "output_size=n",
    ),
    "one_hot": (
        lambda x: F.one_hot(x.long()),
        "F.one_hot depends",
        "Call torch.nn.functional.one_hot",
    ),
    "tensor_split": (
        lambda x: torch.tensor_split(x, torch.tensor([1])),
        "reads the values of a tensor",
        "outside of the compiled function",
    ),
}


#: What later versions of torch can trace, by the first of them.
TRACED_SINCE = {"combinations": (2, 14)}
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


def untraceable(name: str) -> bool:
    return name not in TRACED_SINCE or TRACED_SINCE[name] > TORCH


@pytest.mark.parametrize("name", [name for name in IN_CPP if untraceable(name)])
def test_untraceable_torch_cpp_function_raises_with_its_name_and_remedy(name: str) -> None:
    fn, what, remedy = IN_CPP[name]
    with pytest.raises(TraceError) as error:
        compiled(lambda x: fn(x))(X)
    said = str(error.value)
    assert what.replace("F.", "torch.nn.functional.") in said
    assert remedy in said
    assert "test_untraceable.py:" in said
    assert "ftrain.cond(" not in said


@pytest.mark.parametrize("name", TRACED_SINCE)
def test_function_traceable_only_since_a_later_torch_version_matches_eager(name: str) -> None:
    if untraceable(name):
        pytest.skip(f"torch {torch.__version__} does not trace {name}")
    fn, _, _ = IN_CPP[name]
    testing.assert_same_bits(compiled(fn)(X), fn(X))


def traces(fn: Callable[..., Any]) -> bool:
    """Return True if this version of torch can trace a function."""
    try:
        compiled(fn).graph(X)
    except TraceError:
        return False
    return True


def filled(x: torch.Tensor) -> torch.Tensor:
    return X.index_fill(0, torch.tensor([0, 2, 2]), x[0, 0]).sum()


def assigned(x: torch.Tensor) -> torch.Tensor:
    return torch.index_put(X, (X > 0,), x[0, 0]).sum()


@pytest.mark.parametrize(
    ("loss", "what"), [(filled, "index_fill by the value"), (assigned, r"x\[mask\] = values")]
)
def test_error_for_a_backward_pass_that_reads_tensor_values_names_the_forward_operation(
    loss: Any, what: str
) -> None:
    said = rf"(?s)the gradient of {what}.*torch.where\(mask, value"
    gradient = ftrain.value_and_grad(loss)
    if loss is filled and traces(gradient):  # torch 2.11
        for x in (X, 3 * X + 1):
            testing.assert_same_bits(compiled(gradient)(x), gradient(x))
        return
    with pytest.raises(TraceError, match=said) as error:
        compiled(gradient)(X)
    assert "no frame" not in str(error.value)


def test_compiled_gradient_of_complex_singular_vectors_raises_with_the_reason() -> None:
    """Torch checks in the backward pass that a loss does not depend on the phases of the vectors."""

    def loss(x: torch.Tensor) -> torch.Tensor:
        vectors = torch.linalg.svd(torch.complex(x[:2, :2], x[1:3, :2]))[0]
        return (vectors.abs() ** 4).sum()

    x = torch.arange(12.0, dtype=torch.float64).reshape(3, 4).sin()
    assert ftrain.value_and_grad(loss)(x)[1].isfinite().all()
    said = "(?s)of a complex matrix compares values.*ftrain.value_and_grad alone computes it"
    with pytest.raises(TraceError, match=said):
        compiled(ftrain.value_and_grad(loss))(x)


@pytest.mark.parametrize(
    "fn", [lambda x: x if x.sum() > 0 else -x, lambda x: float(x.sum()), lambda x: x.tolist()]
)
def test_user_code_that_reads_tensor_values_raises_an_error_that_suggests_ftrain_cond(
    fn: Any,
) -> None:
    with pytest.raises(
        TraceError, match=r"(?s)it asks for the value of a tensor.*ftrain.cond\("
    ) as error:
        compiled(fn)(X)
    assert "line of torch" not in str(error.value)


def covariance(x: torch.Tensor) -> torch.Tensor:
    centered = x - x.mean(1, keepdim=True)
    return centered @ centered.mT / (x.shape[1] - 1)


def correlation(x: torch.Tensor) -> torch.Tensor:
    cov = covariance(x)
    s = cov.diagonal().sqrt()
    return cov / (s[:, None] * s)


def negative_log_likelihood(x: torch.Tensor) -> torch.Tensor:
    input, target, var = x, X + 1, x.square() + 1
    return 0.5 * (var.log() + (input - target) ** 2 / var).mean()


@pytest.mark.parametrize(
    ("remedy", "fn"),
    [(covariance, torch.cov), (correlation, torch.corrcoef), (negative_log_likelihood, gaussian)],
)
def test_suggested_replacements_match_the_untraceable_functions(remedy: Any, fn: Any) -> None:
    x = torch.randn(3, 4)
    testing.assert_close_norm(compiled(remedy)(x), fn(x), 1e-6)


def test_replacement_suggested_for_adaptive_softmax_matches_its_loss() -> None:
    layer, target = nn.AdaptiveLogSoftmaxWithLoss(4, 8, [2, 5]), torch.tensor([0, 3, 7])

    def remedy(x: torch.Tensor) -> torch.Tensor:
        return -layer.log_prob(x).gather(1, target[:, None]).mean()

    with pytest.raises(TraceError, match=r"(?s)into clusters.*log_prob\(x\).gather\(1, target"):
        compiled(lambda x: layer(x, target).loss)(X)
    testing.assert_close_norm(compiled(remedy)(X), layer(X, target).loss, 1e-6)


def test_replacement_suggested_for_repeat_interleave_equals_its_result() -> None:
    def remedy(x: torch.Tensor, repeats: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(repeats, dim=0, output_size=3)

    repeats = torch.tensor([1, 2, 0])
    found = compiled(remedy)(X, repeats)
    testing.assert_same_bits(found, X.repeat_interleave(repeats, dim=0))


def test_replacement_suggested_for_trunc_normal_draws_within_the_bounds() -> None:
    def cdf(x: float) -> float:
        return (1 + math.erf(x / math.sqrt(2))) / 2

    def draw(key: torch.Tensor) -> torch.Tensor:
        u = random.uniform(key, (10_000,), minval=cdf(-1), maxval=cdf(2))
        return torch.special.ndtri(u)

    x = compiled(draw)(random.key(0))
    assert x.min() >= -1 - 1e-5
    assert x.max() <= 2 + 1e-5
    # The mean of 10,000 such numbers: 0.2296 with a standard error of 0.0072.
    assert abs(float(x.mean()) - 0.2296) < 5 * 0.0072


def test_zero_gradient_returned_by_a_compiled_function_has_its_own_memory() -> None:
    step = compiled(ftrain.value_and_grad(lambda x: torch.sgn(x).sum()))
    for _ in range(2):
        _, grad = step(X)
        testing.assert_same_bits(grad.add_(1), torch.ones(3, 4))


def test_compiled_sparse_gradient_raises_an_error_that_suggests_sparse_false() -> None:
    def loss(weight: torch.Tensor) -> torch.Tensor:
        return F.embedding(torch.tensor([0, 2]), weight, sparse=True).sum()

    with pytest.raises(TypeError, match=r"is sparse: .*sparse=False.*nn.EmbeddingBag"):
        compiled(ftrain.value_and_grad(loss))(X)


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss()])
def test_compiled_loss_with_uint8_labels_equals_eager(loss: Any) -> None:
    labels = torch.tensor([1, 0, 3], dtype=torch.uint8)
    step = ftrain.value_and_grad(lambda x, y: loss(x, y))
    testing.assert_same_bits(compiled(step)(X, labels), step(X, labels))


def test_compiled_embedding_with_max_norm_raises_with_a_remedy() -> None:
    with pytest.raises(ImpureFunctionError, match="Leave max_norm out") as error:
        compiled(lambda w: F.embedding(torch.tensor([0]), w, max_norm=1.0))(X)
    assert "x += 1" not in str(error.value)


def explained(error: Exception) -> TraceError | None:
    """Return the error that a compiled function raises for an error of torch in its trace."""
    return _untraceable.untraceable(error, "step", _untraceable.Calls())


class FakeTensorDeviceMismatchError(RuntimeError):
    """Error of the class that torch raises for operands on several devices."""


class Aborted(Exception):
    """Error of a class that torch does not raise for operations of a trace."""


TEXTS = [
    (RuntimeError, "FakeTensor.__format__ of x", "formats the value of a tensor", "ftrain.cond("),
    (ValueError, "no forward differentiable view operations", "forward mode", "jacrev"),
    (RuntimeError, "expected cpu, but got meta", "forward mode", "reverse mode"),
    (FakeTensorDeviceMismatchError, "two devices, meta and cpu", "forward mode", "reverse mode"),
    (RuntimeError, "Can't call .numpy() on it", "to NumPy or asks for its memory", "NumPy part"),
    (RuntimeError, "Cannot access data pointer", "asks for its memory", "torch function"),
    (RuntimeError, "its data is not allocated yet", "reads the values", "Call it outside"),
    (TypeError, "no UntypedStorage of it", "the storage of a tensor", "x.copy_(y)"),
    (RuntimeError, "Couldn't swap Linear.weight", "swaps tensors", "its final dtype"),
    (RuntimeError, "Cannot swap t1", "swaps tensors", "its final dtype"),
    (RuntimeError, "can't get value out of a tracing tensor", "asks for the value", "0-d tensors"),
    (RuntimeError, "vmap: data-dependent control flow", "asks for the value", "ftrain.cond("),
    (RuntimeError, "vmap: no .item() on a Tensor", "asks for the value", "0-d tensors"),
]


@pytest.mark.parametrize(("kind", "text", "what", "remedy"), TEXTS)
def test_error_of_torch_in_a_trace_is_explained_by_its_text(
    kind: type[Exception], text: str, what: str, remedy: str
) -> None:
    found = str(explained(kind(text)))
    assert found.startswith("`step` cannot become one graph: it") or "a function of torch" in found
    assert what in found
    assert remedy in found
    assert explained(Aborted(text)) is None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("two devices, meta and cpu"),
        FakeTensorDeviceMismatchError("two devices, cpu and cuda"),
        RuntimeError("vmap: no rule for this operator"),
        RuntimeError("no .item() on a Tensor"),
        RuntimeError("data-dependent: vmap: of the user"),
        ValueError("wrong"),
    ],
)
def test_other_error_in_a_trace_is_left_as_it_is(error: Exception) -> None:
    assert explained(error) is None

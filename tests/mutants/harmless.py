"""Mutants that no test need kill, each with its reason.

A mutant is named by its module, by the function or class around the change ("" for none), and by the
statement without and with the change, as `ast.unparse` writes it. A test fails for a name that belongs
to no mutant, or to several, and the report names those that a test kills. `reason` also knows a kind of
mutants that is harmless everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.mutants.harmless_core import CORE, PERFORMANCE
from tests.mutants.harmless_random import IN_RANDOM

__all__ = ["HARMLESS", "reason"]

STRICT = "a check that never fails: the lists have one length by construction"

HARMLESS: dict[tuple[str, str, str, str], str] = {
    **IN_RANDOM,
    **CORE,
    (
        "random._generators",
        "_python_is_readable",
        "probe = random.Random(5)",
        "probe = random.Random(6)",
    ): "any seed serves to compare a generator's memory with its state",
    (
        "random._rejection",
        "von_mises.propose",
        "excess = torch.where(kappa < 1e-05, 1 / kappa + kappa - 1, short ** 2 / (2 * (1 - short)))",
        "excess = torch.where(kappa < 1e-05, 1 / kappa + kappa + 1, short ** 2 / (2 * (1 - short)))",
    ): "another envelope of nearly uniform angles, 2e-5 wider; the accepted ones stay exact",
    (
        "_loss",
        "_unchanged",
        "loss.calls.passed('call')",
        "None",
    ): f"{PERFORMANCE}: bytes are compared at every call, not at the first only",
    (
        "random._keyed_operators",
        "OpaqueOperators.__torch_dispatch__",
        "if isinstance(func, OpOverload) and func.namespace not in _TAGGED:",
        "if isinstance(func, OpOverload) or func.namespace not in _TAGGED:",
    ): f"{PERFORMANCE}: operators of torch, which the graph has keyed, are checked as well",
    (
        "norm",
        "_is_readable",
        "return type(value) is torch.Tensor and (not is_tracing()) and (_torch.inside_functorch() is "
        "None) and (not _torch.is_forward_mode()) and (not torch.compiler.is_dynamo_compiling())",
        "return type(value) is torch.Tensor and (not not is_tracing()) and (_torch.inside_functorch() "
        "is None) and (not _torch.is_forward_mode()) and (not torch.compiler.is_dynamo_compiling())",
    ): f"{PERFORMANCE}, since no traced value is a plain tensor",
    (
        "_torch_dynamo",
        "allocation_changes",
        "changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "
        "'[memory]' and event.device_index() in (-1, 0)]",
        "changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "
        "'[memory]' and event.device_index() in (-1, 1)]",
    ): "unreachable on this version: torch 2.13 numbers the CPU -1, and only others number it 0",
    (
        "_torch_operators",
        "operators_of",
        "if node.op == 'call_function' and isinstance(node.target, torch._ops.OpOverload):",
        "if node.op != 'call_function' and isinstance(node.target, torch._ops.OpOverload):",
    ): "unreachable here: it is read for CUDA graphs, which need a device",
    (
        "_torch_operators",
        "while_loop_operator",
        "warnings.filterwarnings('ignore', 'Accessing the data pointer of FakeTensor')",
        "None",
    ): "one warning of torch more while a loop is traced",
    (
        "_torch_recurrent",
        "_bfloat16_lstm.run",
        "weights = [zeros(4, 1), zeros(4, 1), zeros(4), zeros(4)]",
        "weights = [zeros(4, 1), zeros(4, 2), zeros(4), zeros(4)]",
    ): "slower only: the trial of oneDNN fails, and torch's own kernels run",
    (
        "compile._program_writes",
        "",
        "_MOST_PASSES = 100",
        "_MOST_PASSES = 101",
    ): "a bound on the work: nearly all loops need two passes",
    (
        "compile._program_writes",
        "_Reader._items_of",
        "return self._items_of(value.left) * (times or 0)",
        "return self._items_of(value.left) * (times or 1)",
    ): "all items of such a list are alike, so a known item serves for any",
    (
        "compile._rnn",
        "_rnn_backward",
        "found = torch.autograd.grad(output, inputs, grads[:len(output)], allow_unused=True)",
        "found = torch.autograd.grad(output, inputs, grads[:len(output)], allow_unused=False)",
    ): "torch's recurrent kernels use every input",
    (
        "compile._pooling",
        "_source",
        "if below.meta['val'].shape[-2:] != x.meta['val'].shape[-2:]:",
        "if below.meta['val'].shape[-2:] != x.meta['val'].shape[+2:]:",
    ): "the same two sizes: vmapped pooling takes tensors of four dimensions",
    (
        "compile._pooling",
        "_gradient",
        "if _is_view(user) and user.meta['val'].shape == source.shape:",
        "if not (_is_view(user) and user.meta['val'].shape == source.shape):",
    ): f"{PERFORMANCE}: the view goes through one more reshape",
    (
        "compile._pooling",
        "_gradient",
        "if _is_view(user) and user.meta['val'].shape == source.shape:",
        "if _is_view(user) or user.meta['val'].shape == source.shape:",
    ): f"{PERFORMANCE}: the view goes through one more reshape",
    (
        "compile._pooling",
        "_gradient",
        "if _is_view(user) and user.meta['val'].shape == source.shape:",
        "if _is_view(user) and user.meta['val'].shape != source.shape:",
    ): f"{PERFORMANCE}: the view goes through one more reshape",
    (
        "compile._lower",
        "lower",
        "keep_traced_dtypes(graph)",
        "None",
    ): "unreachable here: only operators on CUDA mix dtypes (tests/compile/test_dtypes.py)",
    (
        "compile._pooling",
        "_gradient",
        "graph.erase_node(user)",
        "None",
    ): "code without use: inductor removes the view",
    (
        "random.sample",
        "_orders",
        "yield (of_same_bits(words, torch.int32) ^ -2 ** 31).sort(dim=axis, stable=True).indices",
        "yield (of_same_bits(words, torch.int32) ^ -2 ** 31).sort(dim=axis, stable=False).indices",
    ): "torch sorts in a stable way on the CPU, whatever is asked for; a device may not",
    (
        "random._jax_samplers",
        "_propose",
        "at_once = (us >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2.0))",
        "at_once = (us >= 0.07) & (v < 0.9277 - 3.6224 / (b - 2.0))",
    ): "a squeeze: what it does not accept, the exact comparison after it accepts",
    (
        "random._normal",
        "normal",
        "lowest = torch.finfo(dtype).eps / 2.0 - 1.0",
        "lowest = torch.finfo(dtype).eps / 3.0 - 1.0",
    ): "the same number: both are rounded to the smallest one above -1",
    (
        "random._keyed_layers",
        "scaled_dot_product_attention",
        "causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()",
        "causal = torch.ones(scores.shape[-3:], dtype=torch.bool, device=scores.device).tril()",
    ): "slower only: the same triangle once for each head",
    (
        "random._keyed_fills",
        "cauchy_",
        "return self.copy_((math.pi * (unit - 0.5)).tan() * sigma + median)",
        "return self.copy_((math.pi * (unit - 1.5)).tan() * sigma + median)",
    ): "the same numbers up to rounding: the tangent has the period pi",
    (
        "random._elementary",
        "exp",
        "inside = x.clamp(-708.0, 709.7)",
        "inside = x.clamp(-709.0, 709.7)",
    ): "the same result: numbers below -708 give 0 in the end",
    (
        "random._jax_families",
        "_log_gamma_slope_kernel",
        "x = log_x.clamp(-30.0, 700.0).exp()",
        "x = log_x.clamp(-30.0, 701.0).exp()",
    ): "the same result unless a parameter exceeds e^700",
    (
        "random._integers",
        "_remainder64",
        "positive = torch.where(n > 0, n, 1)",
        "positive = torch.where(n > 0, n, 2)",
    ): "the same result: the quotient by this number is not taken where n is not positive",
    (
        "random._rejection",
        "von_mises.propose",
        "excess = torch.where(kappa < 1e-05, 1 / kappa + kappa - 1, short ** 2 / (2 * (1 - short)))",
        "excess = torch.where(kappa <= 1e-05, 1 / kappa + kappa - 1, short ** 2 / (2 * (1 - short)))",
    ): "another envelope of nearly uniform angles; the accepted ones stay exact",
    (
        "random._rejection",
        "von_mises.propose",
        "excess = torch.where(kappa < 1e-05, 1 / kappa + kappa - 1, short ** 2 / (2 * (1 - short)))",
        "excess = torch.where(kappa < 1e-05, 1 / kappa - kappa - 1, short ** 2 / (2 * (1 - short)))",
    ): "another envelope of nearly uniform angles; the accepted ones stay exact",
    (
        "random._rejection",
        "von_mises.propose",
        "excess = torch.where(kappa < 1e-05, 1 / kappa + kappa - 1, short ** 2 / (2 * (1 - short)))",
        "excess = torch.where(kappa < 1e-05, 1 / kappa + kappa - 2, short ** 2 / (2 * (1 - short)))",
    ): "another envelope of nearly uniform angles; the accepted ones stay exact",
    (
        "random._keyed_fills",
        "cauchy_",
        "return self.copy_((math.pi * (unit - 0.5)).tan() * sigma + median)",
        "return self.copy_((math.pi * (unit + 0.5)).tan() * sigma + median)",
    ): "the same numbers up to rounding: the tangent has the period pi",
    (
        "random._keyed_draws",
        "memory.allocated",
        "zero = stream.key_on(value.device)[0] * 0",
        "zero = stream.key_on(value.device)[0] * 1",
    ): "other contents of memory that `torch.empty` leaves undefined",
    (
        "commit",
        "",
        "_SMALL = 1024",
        "_SMALL = 1025",
    ): f"{PERFORMANCE}: a state of 1,024 numbers is small either way",
    (
        "cost.rates",
        "Rates.floor",
        "least = min(size, max(measured, default=0))",
        "least = min(size, max(measured, default=1))",
    ): "the same rate: without a measured copy, no amount is compared with this number",
    (
        "_recursion",
        "",
        "_FRAMES = 6",
        "_FRAMES = 7",
    ): "a larger limit of Python, which any model that trains within the smaller one fits",
    (
        "_recursion",
        "",
        "_USUAL = 100",
        "_USUAL = 101",
    ): "the usual limit suffices for either depth",
    (
        "_recursion",
        "",
        "_MOST = 20000",
        "_MOST = 20001",
    ): "a larger limit of Python, which any model that trains within the smaller one fits",
    (
        "_recursion",
        "_Room.__init__",
        "self._usual = 0",
        "self._usual = 1",
    ): "the number is replaced before it is read",
    (
        "_recursion",
        "deep_enough",
        "return _NOTHING if depth <= _USUAL else _with_room(min(_FRAMES * depth, _MOST))",
        "return _NOTHING if depth < _USUAL else _with_room(min(_FRAMES * depth, _MOST))",
    ): "the usual limit suffices for this depth too",
    (
        "compile._trace",
        "trace",
        "whole = found.get('whole', False)",
        "whole = found.get('whole', True)",
    ): "read for donated programs only, for which the trace stores a value",
    (
        "random._jax_samplers",
        "_fused",
        "return a * b + c",
        "return None",
    ): "unreachable here: other processors than Apple's compute in float64",
    (
        "random._jax_samplers",
        "_fused",
        "return a * b + c",
        "return a * b - c",
    ): "unreachable here: other processors than Apple's compute in float64",
    (
        "random._jax_samplers",
        "_fused",
        "return a * b + c",
        "return a / b + c",
    ): "unreachable here: other processors than Apple's compute in float64",
    (
        "random._find_draw",
        "_Here",
        "in_torch = False",
        "in_torch = True",
    ): "read only before the first line of user code, where a draw has no line to report",
    (
        "_skeleton",
        "Skeleton.holding",
        "self._firsts.passed(training)",
        "None",
    ): f"{PERFORMANCE}: bytes are compared at every call, not at the first only",
    (
        "random._rejection",
        "binomial",
        "first = torch.where(is_small & ~is_certain & is_valid, torch.exp(count * "
        "torch.log1p(-p)), 1.0)",
        "first = torch.where(is_small & ~is_certain & is_valid, torch.exp(count * "
        "torch.log1p(-p)), 2.0)",
    ): "the same result: any number of at least 1 marks elements whose result is not used",
    (
        "_writes",
        "",
        "_MANY = 4096",
        "_MANY = 4097",
    ): "memory only: the number of functions after which their record is emptied",
    (
        "random._watch",
        "Watch.__init__",
        "self._operators = False",
        "self._operators = True",
    ): "the flag is replaced before it is read",
    (
        "random._keyed_reach",
        "_copy",
        "if 'overrides' in func.__code__.co_names and scope.get('torch') is torch:",
        "if 'overrides' in func.__code__.co_names or scope.get('torch') is torch:",
    ): f"{PERFORMANCE}: the stand-in passes every other name on to torch",
    (
        "_model_calls",
        "ModelCalls._again",
        "return (run(until, tree.map(lambda leaf: entry(leaf, follow=False), x)), rerun.after)",
        "return (run(until, tree.map(lambda leaf: entry(leaf, follow=True), x)), rerun.after)",
    ): "memory only: the values are the same, and the graph is dropped",
    (
        "random._generators",
        "_find_gauss",
        "seen.append({i for i in range(0, len(raw) - 15, 8) if raw[i:i + 4] == has and "
        "raw[i + 8:i + 16] == kept})",
        "seen.append({i for i in range(0, len(raw) - 15, 8) if raw[i:i + 4] == has and "
        "raw[i + 8:i + 16] != kept})",
    ): "slower only: no place is found, and NumPy's own function reads its generator",
}


def reason(module: str, function: str, before: str, after: str) -> str | None:
    """Return the reason why no test need find a mutant; None without one."""
    lenient = (before[: m.start()] + "strict=False" + before[m.end() :] for m in _strict(before))
    return STRICT if after in lenient else HARMLESS.get((module, function, before, after))


def _strict(statement: str) -> Iterator[re.Match[str]]:
    """Yield the places of `strict=True`, which only `zip` takes in `ftrain/core`."""
    return re.finditer(r"\bstrict=True\b", statement)

"""Harmless mutants of modules directly in `ftrain/core`, which `harmless.py` adds to its own."""

from __future__ import annotations

__all__ = ["CORE", "PERFORMANCE"]

PERFORMANCE = "slower only: the same bits take another way"

CORE: dict[tuple[str, str, str, str], str] = {
    (
        "norm",
        "",
        "_RANGE = {torch.float32: (2.0 ** 90, 2.0 ** (-50)), torch.float64: (2.0 ** 700, 2.0 "
        "** (-480))}",
        "_RANGE = {torch.float32: (2.0 ** 91, 2.0 ** (-50)), torch.float64: (2.0 ** 700, 2.0 "
        "** (-480))}",
    ): "the same bits: another power of two that keeps squares in range",
    (
        "norm",
        "",
        "_RANGE = {torch.float32: (2.0 ** 90, 2.0 ** (-50)), torch.float64: (2.0 ** 700, 2.0 "
        "** (-480))}",
        "_RANGE = {torch.float32: (2.0 ** 90, 2.0 ** (-50)), torch.float64: (2.0 ** 701, 2.0 "
        "** (-480))}",
    ): "the same bits: another power of two that keeps squares in range",
    (
        "norm",
        "",
        "_RANGE = {torch.float32: (2.0 ** 90, 2.0 ** (-50)), torch.float64: (2.0 ** 700, 2.0 "
        "** (-480))}",
        "_RANGE = {torch.float32: (2.0 ** 90, 2.0 ** (-51)), torch.float64: (2.0 ** 700, 2.0 "
        "** (-480))}",
    ): "the same bits: at half this norm, squares do not underflow either",
    (
        "norm",
        "",
        "_RANGE = {torch.float32: (2.0 ** 90, 2.0 ** (-50)), torch.float64: (2.0 ** 700, 2.0 "
        "** (-480))}",
        "_RANGE = {torch.float32: (2.0 ** 90, 2.0 ** (-50)), torch.float64: (2.0 ** 700, 2.0 "
        "** (-481))}",
    ): "the same bits: at half this norm, squares do not underflow either",
    (
        "norm",
        "",
        "_RANGE = {torch.float32: (2.0 ** 90, 2.0 ** (-50)), torch.float64: (2.0 ** 700, 2.0 "
        "** (-480))}",
        "_RANGE = {torch.float32: (2.0 ** 90, 2.0 ** (-50)), torch.float64: (2.0 ** 700, 2.0 "
        "** (+480))}",
    ): "slower only: all norms are computed with the factor, which cancels",
    (
        "norm",
        "",
        "_RANGE = {torch.float32: (2.0 ** 90, 2.0 ** (-50)), torch.float64: (2.0 ** 700, 2.0 "
        "** (-480))}",
        "_RANGE = {torch.float32: (2.0 ** 90, 2.0 ** (+50)), torch.float64: (2.0 ** 700, 2.0 "
        "** (-480))}",
    ): "slower only: all norms are computed with the factor, which cancels",
    (
        "norm",
        "_finite_norm",
        "usual = (total >= least) & torch.isfinite(total)",
        "usual = (total > least) & torch.isfinite(total)",
    ): "slower only: at this norm, the result with the factor is the same",
    (
        "norm",
        "_finite_norm",
        "other = torch.where(torch.isfinite(total), one * up, one * (1 / up))",
        "other = torch.where(torch.isfinite(total), one * up, one * (2 / up))",
    ): "the same bits: another power of two that keeps squares in range",
    (
        "norm",
        "_finite_norm",
        "if not rows and (not torch.is_grad_enabled()) and are_readable(leaves):",
        "if not not rows and (not torch.is_grad_enabled()) and are_readable(leaves):",
    ): PERFORMANCE,
    (
        "norm",
        "_finite_norm",
        "if not rows and (not torch.is_grad_enabled()) and are_readable(leaves):",
        "if not rows and (not not torch.is_grad_enabled()) and are_readable(leaves):",
    ): PERFORMANCE,
    (
        "norm",
        "are_readable",
        "return _is_readable(leaves[0]) and all((type(x) is torch.Tensor and x.is_cpu for x "
        "in leaves))",
        "return None",
    ): PERFORMANCE,
    (
        "norm",
        "are_readable",
        "return _is_readable(leaves[0]) and all((type(x) is torch.Tensor and x.is_cpu for x "
        "in leaves))",
        "return _is_readable(leaves[0]) and all((type(x) is not torch.Tensor and x.is_cpu "
        "for x in leaves))",
    ): PERFORMANCE,
    (
        "norm",
        "_is_readable",
        "return type(value) is torch.Tensor and (not is_tracing()) and "
        "(_torch.inside_functorch() is None) and (not _torch.is_forward_mode()) and (not "
        "torch.compiler.is_dynamo_compiling())",
        "return None",
    ): PERFORMANCE,
    (
        "norm",
        "_is_readable",
        "return type(value) is torch.Tensor and (not is_tracing()) and "
        "(_torch.inside_functorch() is None) and (not _torch.is_forward_mode()) and (not "
        "torch.compiler.is_dynamo_compiling())",
        "return type(value) is not torch.Tensor and (not is_tracing()) and "
        "(_torch.inside_functorch() is None) and (not _torch.is_forward_mode()) and (not "
        "torch.compiler.is_dynamo_compiling())",
    ): PERFORMANCE,
    (
        "norm",
        "_is_readable",
        "return type(value) is torch.Tensor and (not is_tracing()) and "
        "(_torch.inside_functorch() is None) and (not _torch.is_forward_mode()) and (not "
        "torch.compiler.is_dynamo_compiling())",
        "return type(value) is torch.Tensor and (not is_tracing()) and "
        "(_torch.inside_functorch() is None) and (not _torch.is_forward_mode()) and (not not "
        "torch.compiler.is_dynamo_compiling())",
    ): "unreachable on this version: Dynamo of torch 2.13 stops at `inside_functorch` before",
    (
        "metrics",
        "on_device",
        "return torch.ones((), dtype=value.dtype, device=device) * value",
        "return torch.ones((), dtype=value.dtype, device=device) / value",
    ): "unreachable here: a number goes from the host to another device that computes",
    (
        "commit",
        "committed",
        "large = [place for place, new in enumerate(news) if new.numel() > _SMALL]",
        "large = [place for place, new in enumerate(news) if new.numel() >= _SMALL]",
    ): f"{PERFORMANCE}: a tensor of 1,024 numbers is small either way",
    (
        "_file_output",
        "",
        "_LONGEST = 64 << 20",
        "_LONGEST = 65 << 20",
    ): "memory only: a longer line is read before it counts as incomplete",
    (
        "_file_output",
        "",
        "_LONGEST = 64 << 20",
        "_LONGEST = 64 << 21",
    ): "memory only: a longer line is read before it counts as incomplete",
    (
        "tree",
        "register_dataclass_node",
        "read = operator.attrgetter(*names) if len(names) > 1 else one_by_one",
        "read = operator.attrgetter(*names) if len(names) > 2 else one_by_one",
    ): PERFORMANCE,
    (
        "_instances",
        "functions.flatten",
        "if attributes or len(children) < len(bare.children):",
        "if attributes or len(children) <= len(bare.children):",
    ): PERFORMANCE,
    (
        "_object_contents",
        "",
        "_INSTANCE = _Kind(len, dict.keys, dict.values, _put_dict, strings=True)",
        "_INSTANCE = _Kind(len, dict.keys, dict.values, _put_dict, strings=False)",
    ): PERFORMANCE,
}

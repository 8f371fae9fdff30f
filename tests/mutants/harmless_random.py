"""Mutants of `ftrain/core/random` that no test need kill, each with its reason; see `harmless.py`."""

from __future__ import annotations

__all__ = ["IN_RANDOM"]

IN_RANDOM: dict[tuple[str, str, str, str], str] = {
    (
        "random._rejection",
        "",
        "_MOST_ROUNDS = 1000",
        "_MOST_ROUNDS = 1001",
    ): "a number of rounds that no draw reaches by chance",
    (
        "random._rejection",
        "_log_remainder",
        "return torch.where(t.abs() < 0.001, -t ** 4 / 4 + t ** 5 / 5, direct)",
        "return torch.where(t.abs() <= 0.001, -t ** 4 / 4 + t ** 5 / 5, direct)",
    ): "both formulas are as accurate at this point",
    (
        "random._rejection",
        "_log_poisson",
        "deviance = rate * torch.where(t.abs() < 0.001, series, (1 + t) * torch.log1p(t) - t)",
        "deviance = rate * torch.where(t.abs() <= 0.001, series, (1 + t) * torch.log1p(t) - t)",
    ): "both formulas are as accurate at this point",
    (
        "random._keyed_layers",
        "scaled_dot_product_attention",
        "scores = torch.where(nowhere, 0, scores)",
        "scores = torch.where(nowhere, 1, scores)",
    ): "any finite number serves: the weights of these rows are replaced by 0",
    (
        "random._keyed_layers",
        "recurrent.layers",
        "if p == 0 or not training or count == 1:",
        "if p == 1 or not training or count == 1:",
    ): "slower only: the layers run one at a time",
    (
        "random._keyed_layers",
        "recurrent.layers",
        "input, *final = run(input, *batch_sizes, own[0] if isinstance(hx, Tensor) else own, "
        "weights[layer * per_layer:(layer + 1) * per_layer], *(has_bias, 1, 0.0, training, "
        "bidirectional, *batch_first))",
        "input, *final = run(input, *batch_sizes, own[0] if isinstance(hx, Tensor) else own, "
        "weights[layer * per_layer:(layer + 1) * per_layer], *(has_bias, 1, 1.0, training, "
        "bidirectional, *batch_first))",
    ): "the kernels drop elements between layers only, and this one runs a single layer",
    (
        "random._keyed_layers",
        "_gain",
        "return 1 / (1 - p) if p < 1 else 0.0",
        "return 1 / (1 - p) if p < 1 else 1.0",
    ): "the factor of elements that the mask drops",
    (
        "random._keyed_transforms",
        "_autocasts",
        "return device != 'cpu' and norm.__name__ in ('layer_norm', 'group_norm') and "
        "torch.is_autocast_enabled(device)",
        "return None",
    ): "unreachable here: autocast on the CPU does not run them in float32",
    (
        "random._keyed_transforms",
        "_autocasts",
        "return device != 'cpu' and norm.__name__ in ('layer_norm', 'group_norm') and "
        "torch.is_autocast_enabled(device)",
        "return device != 'cpu' and norm.__name__ not in ('layer_norm', 'group_norm') and "
        "torch.is_autocast_enabled(device)",
    ): "unreachable here: autocast on the CPU does not run them in float32",
    (
        "random._keyed_draws",
        "randperm",
        "_require_range('randperm', 0, n, dtype)",
        "_require_range('randperm', 1, n, dtype)",
    ): "every dtype that holds 0 holds 1",
    (
        "random._keyed_draws",
        "memory.allocated",
        "zero = stream.key_on(value.device)[0] * 0",
        "zero = stream.key_on(value.device)[1] * 0",
    ): "the same zero",
    (
        "random._keyed_draws",
        "memory.allocated",
        "zero = stream.key_on(value.device)[0] * 0",
        "zero = stream.key_on(value.device)[0] / 0",
    ): "other contents of memory that `torch.empty` leaves undefined",
    (
        "random._keyed_draws",
        "memory.allocated",
        "filled = value.detach().zero_() + zero.to(value.dtype)",
        "filled = value.detach().zero_() - zero.to(value.dtype)",
    ): "the same zeros",
    (
        "random._generators",
        "_python_is_readable",
        "if type(probe).__basicsize__ < object.__basicsize__ + _MT19937_BYTES:",
        "if type(probe).__basicsize__ <= object.__basicsize__ + _MT19937_BYTES:",
    ): "an object of this size exactly does not exist: it has one field more",
    (
        "random._generators",
        "_find_gauss",
        "probe = np.random.RandomState(5)",
        "probe = np.random.RandomState(6)",
    ): "any seed serves to compare a generator's memory with its state",
    (
        "random._generators",
        "_find_gauss",
        "for _ in range(3):",
        "for _ in range(4):",
    ): "one more comparison than needed",
    (
        "random._generators",
        "_find_gauss",
        "seen.append({i for i in range(0, len(raw) - 15, 8) if raw[i:i + 4] == has and raw[i "
        "+ 8:i + 16] == kept})",
        "seen.append({i for i in range(0, len(raw) + 15, 8) if raw[i:i + 4] == has and raw[i "
        "+ 8:i + 16] == kept})",
    ): "a slice beyond the end is shorter than the number that it is compared with",
    (
        "random._generators",
        "_find_gauss",
        "seen.append({i for i in range(0, len(raw) - 15, 8) if raw[i:i + 4] == has and raw[i "
        "+ 8:i + 16] == kept})",
        "seen.append({i for i in range(0, len(raw) - 16, 8) if raw[i:i + 4] == has and raw[i "
        "+ 8:i + 16] == kept})",
    ): "the cached draw is not in the last bytes of the object",
    (
        "random._generators",
        "_find_gauss",
        "seen.append({i for i in range(0, len(raw) - 15, 8) if raw[i:i + 4] == has and raw[i "
        "+ 8:i + 16] == kept})",
        "seen.append({i for i in range(0, len(raw) - 15, 8) if raw[i:i + 4] == has or raw[i +"
        " 8:i + 16] == kept})",
    ): "slower only: many places are found, and NumPy's own function reads its generator",
    (
        "random._generators",
        "_numpy_reader.read_slowly",
        "return pickle.dumps(np.random.get_state(legacy=False))",
        "return pickle.dumps(np.random.get_state(legacy=True))",
    ): "both forms hold the whole state",
    (
        "random._own_generators",
        "",
        "_MOST = 20000",
        "_MOST = 20001",
    ): "the limit of a search, which any number near it serves as well",
    (
        "random._own_generators",
        "reachable",
        "while todo and len(seen) < _MOST:",
        "while todo and len(seen) <= _MOST:",
    ): "the limit of a search, which any number near it serves as well",
    (
        "random._find_draw",
        "",
        "_MORE = 7",
        "_MORE = 8",
    ): "slower only: one more search",
    (
        "random._find_draw",
        "",
        "_SWITCH_INTERVAL = 0.1",
        "_SWITCH_INTERVAL = 1.1",
    ): "other threads wait longer during a search",
    (
        "random._find_draw",
        "",
        "_MAX_WAIT = 5.0",
        "_MAX_WAIT = 6.0",
    ): "a search ends one second later",
    (
        "random._find_draw",
        "_Tracer.__init__",
        "self._count = 0",
        "self._count = 1",
    ): "the order of the numbers is read, not their size",
    (
        "random._find_draw",
        "_Tracer._note",
        "self._count += 1",
        "self._count += 2",
    ): "the order of the numbers is read, not their size",
    (
        "random._find_draw",
        "_Tracer._has_waited",
        "return waited > _MAX_WAIT and _time_of_others() - self._used > _MAX_WAIT",
        "return waited >= _MAX_WAIT and _time_of_others() - self._used > _MAX_WAIT",
    ): "a time that no clock measures exactly",
    (
        "random._find_draw",
        "_Tracer._has_waited",
        "return waited > _MAX_WAIT and _time_of_others() - self._used > _MAX_WAIT",
        "return waited > _MAX_WAIT and _time_of_others() - self._used >= _MAX_WAIT",
    ): "a time that no clock measures exactly",
    (
        "random._find_draw",
        "_time_of_others",
        "nanoseconds = 0",
        "nanoseconds = 1",
    ): "one nanosecond",
    (
        "random._find_draw",
        "_Here",
        "below = False",
        "below = True",
    ): "read only before the first line of user code, where a draw has no line to report",
    (
        "random._find_draw",
        "_Here",
        "may_draw = True",
        "may_draw = False",
    ): "read only before the first line of user code, where a draw has no line to report",
}

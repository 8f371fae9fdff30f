r"""GradCache: contrastive losses of batches that do not fit in memory (arXiv 2101.06983).

A contrastive loss $L(z_1, \ldots, z_n)$ compares the rows of a batch with each other, so micro-batches
change it. It depends on the rows only through embeddings $z_i = f_\theta(x_i)$, which are small:

    z = encode(chunk) for each chunk            # no graph
    u = dL/dz                                   # the graph of the loss alone
    grads = dL/dparams + sum over chunks of u_chunk * d encode(chunk) / dparams

Only the activations of one chunk are in memory at a time, at the cost of a second forward pass.

Read next: `_chunks.py`, which cuts batches, and `OwnGradients` in `ftrain/core/_model_calls.py`.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ftrain.core import random, tree
from ftrain.core._loss import WatchedLoss, split_loss, takes
from ftrain.core._model_calls import ModelCalls, OwnGradients, Seed
from ftrain.core._words import a_or_an, kind
from ftrain.core.accumulate import sum_dtype
from ftrain.core.functional import describe
from ftrain.core.metrics import Metrics
from ftrain.core.random._key_stream import KeyStream
from ftrain.core.random.keyed import innermost_stream
from ftrain.tasks._chunks import Chunks, cut, each, entry, over
from ftrain.tasks.adapters import call_model

__all__ = ["GradCache", "grad_cache"]

Encoder = Callable[..., Any] | str
Name = str | int | None  # None for a single encoder, whose inputs are rows of the whole batch


class _Function(NamedTuple):
    """Encoder or loss as a function of a model and an input, and its name in error messages."""

    call: WatchedLoss
    where: str


def grad_cache(
    encode: Encoder | Mapping[str | int, Encoder],
    loss: Callable[..., Any],
    *,
    chunk_size: int | Mapping[str | int, int],
) -> GradCache:
    r"""Return a loss function for large batches: a step holds the activations of one chunk at a time.

    Pass it to `make_steps` or `gradients` like any loss. The gradients are those of

        loss(model, embeddings, batch),    embeddings = the encoded chunks, concatenated

    in one graph, up to rounding. Each chunk is encoded twice, with the same key and buffers, and so with
    the same dropout masks. Without dropout and batch statistics, this is the loss of the whole batch for
    any chunk size. With them, chunks act like micro-batches:

    - Dropout: each chunk has its own key, so the masks depend on `chunk_size`.
    - BatchNorm: in training, the rows of a chunk are normalized with the statistics of the chunk. The
      running statistics are updated once for each chunk, in the first pass only. A chunk starts with the
      buffers after the previous chunk, as constants; the encoders run in their order, then the loss.
    - Hooks of parameters run on the gradient of each chunk.

    A direct call, `loss_fn(model, batch)`, computes the same loss in one graph; an evaluation encodes
    chunk by chunk as well.

    Args:
        encode: `encode(model, inputs) -> embeddings`, or the name of a submodule or method of the model.
            `inputs` are rows of the whole batch. For several encoders, pass `{name: encode}`: the inputs
            of each are rows of the entry `name` of the batch (an int is the index in a tuple), and the
            entries may differ in their numbers of rows. Encoders may share parameters. Inputs and
            embeddings are trees of tensors, `(rows, ...)`; 0-d tensors and constants of the inputs go to
            every chunk. If `encode` has a parameter `key`, it gets its own key: `encode(model, inputs,
            key)`.
        loss: `loss(model, embeddings, batch) -> loss` or `(loss, metrics)`, as a loss function of
            `make_steps`; `embeddings` is what `encode` returned, or `{name: embeddings}`. It may use
            parameters of the model, such as a temperature, and may have a parameter `key`.
        chunk_size: the number of rows of a chunk, or a dict with one for each encoder; the last chunk
            may have fewer.

    Raises:
        ValueError: a chunk size is not positive, or there is no encoder; in a step: two entries of an
            encoder's inputs differ in their rows, an embedding has another number of rows than its
            inputs, no encoder depends on parameters.
        TypeError: an encoder is neither a function nor a name, or a function has a parameter `extras`;
            in a step: inputs that cannot be cut, or an embedding that is not a real tensor.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> from ftrain.tasks import functional
        >>> class TwoTowers(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.query, self.document = nn.Linear(8, 4), nn.Linear(16, 4)
        >>> def loss(model, embeddings, batch):
        ...     return functional.info_nce(embeddings["query"], embeddings["document"])
        >>> loss_fn = grad_cache(
        ...     {"query": "query", "document": "document"}, loss, chunk_size=16
        ... )
        >>> init_state, train_step, _ = ftrain.make_steps(TwoTowers, loss_fn, optim.sgd(0.1))
        >>> batch = {"query": torch.ones(100, 8), "document": torch.ones(100, 16)}
        >>> state, metrics = train_step(init_state(0), batch)
        >>> metrics["loss"]
        tensor(4.6052)

    References:
        Gao et al. (2021), Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
        https://arxiv.org/abs/2101.06983
    """
    several = isinstance(encode, Mapping)
    encoders: Mapping[Any, Any] = encode if isinstance(encode, Mapping) else {None: encode}
    if not encoders:
        raise ValueError(
            "encode: expected an encoder, got an empty mapping. Write {name: encoder}."
        )
    for name, each_one in encoders.items():
        if not callable(each_one) and not isinstance(each_one, str):
            at = f"encode[{name!r}]" if several else "encode"
            raise TypeError(
                f"{at}: expected a function (model, inputs) -> embeddings or the name of a submodule, "
                f"got {a_or_an(type(each_one).__name__)}. Write {{name: encoder}} for several encoders."
            )
    for each_one in (*encoders.values(), loss):
        if callable(each_one) and takes(each_one, "extras"):
            raise TypeError(
                f"{describe(each_one)}: expected a function without a parameter named `extras`, which "
                "grad_cache does not pass, got one with it. Carry such tensors as buffers of the model "
                "or in the batch."
            )
    sizes = chunk_size if isinstance(chunk_size, Mapping) else dict.fromkeys(encoders, chunk_size)
    if set(sizes) != set(encoders):
        raise ValueError(
            f"chunk_size: expected a size for each of the encoders {list(encoders)}, got "
            f"{list(sizes)}. Pass one number, or a dict with these keys."
        )
    for size in sizes.values():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(
                f"chunk_size: expected a whole number of at least 1, got {size!r}. Write chunk_size=64."
            )
    return GradCache(
        {name: _encoder(one) for name, one in encoders.items()},
        _Function(WatchedLoss(_on_embeddings(loss)), describe(loss)),
        {name: sizes[name] for name in encoders},
        f"grad_cache({getattr(loss, '__name__', type(loss).__name__)})",
    )


class GradCache(OwnGradients):
    """Contrastive loss function whose training step encodes a batch in chunks to save memory."""

    compares_rows = True  # so that `accumulate`, which would change the loss, warns

    def __init__(
        self, encoders: dict[Any, _Function], loss: _Function, sizes: dict[Any, int], name: str
    ) -> None:
        self._encoders, self._loss, self._sizes = encoders, loss, sizes
        self.__name__ = self.__qualname__ = name

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """Return `loss(model, embeddings, batch)` with all chunks encoded in one graph."""
        embeddings: dict[Name, Any] = {}
        stream = innermost_stream()  # None if a user calls it with a module

        def encoded(
            name: Name, carry: Any, key: Tensor | None, chunk: Any, more: Any
        ) -> tuple[Any, Any]:
            with contextlib.nullcontext() if key is None else random.keyed(key, model):
                out = self._encoders[name].call(model, chunk)
            return carry, self._encoded(name, out, chunk)

        for name, chunks in self._cut(batch).items():
            body = functools.partial(encoded, name)
            own = None if stream is None else stream.key_of(_site(name))
            keys = None if own is None else random.split(own, chunks.number)
            # In training, modules may write to their buffers, for which a scan raises.
            if keys is None or model.training:
                each_key = [None] * chunks.number if keys is None else keys.unbind()
                pairs = zip(each_key, each(chunks), strict=True)
                parts = [body((), key, x, [])[1] for key, x in pairs]
                embeddings[name] = tree.map(lambda *x: torch.cat(x), *parts)
            else:
                _, embeddings[name] = over(body, (), chunks, keys)
        return self._loss.call(model, _loss_input(embeddings, batch))

    def forward_backward(
        self,
        calls: ModelCalls,
        params: Any,
        buffers: Any,
        key: Tensor,
        batch: Any,
        seed: Seed,
    ) -> tuple[Any, Any, Metrics]:
        """Return gradients, the buffers after the forward pass, and metrics, of one batch."""
        params = tree.map(torch.Tensor.detach, params)
        cuts, starts, embeddings = self._cut(batch), {}, {}
        keys = {
            name: random.split(KeyStream(key).key_of(_site(name)), chunks.number)
            for name, chunks in cuts.items()
        }
        for name, chunks in cuts.items():
            starts[name] = buffers
            encoded = functools.partial(self._encode, calls, params, name)
            buffers, embeddings[name] = over(encoded, buffers, chunks, keys[name])

        aux, (grads, cotangents) = self._of_loss(
            calls, params, buffers, embeddings, key, batch, seed
        )
        totals = tree.map(_wide, grads)
        depends: set[Name] = set()
        for name, chunks in cuts.items():
            if cotangents[name]:
                pulled = functools.partial(self._pull, calls, params, name, depends)
                (totals, _), _ = over(
                    pulled, (totals, starts[name]), chunks, keys[name], cotangents[name]
                )
        if not depends:
            raise ValueError(
                "grad_cache: expected an encoder that depends on trainable parameters, got none. Look "
                "for .detach(), .item(), .data, torch.no_grad() or an integer operation in "
                f"{', '.join(one.where for one in self._encoders.values())}."
            )
        after, metrics = aux
        return totals, after, metrics

    def _encode(
        self,
        calls: ModelCalls,
        params: Any,
        name: Name,
        buffers: Any,
        key: Tensor,
        chunk: Any,
        more: list[Tensor],
    ) -> tuple[Any, Any]:
        """Encode a chunk without an autograd graph; return the buffers after it, and its embeddings."""
        encode = self._encoders[name]
        # Grad mode is enabled for encoders that compute derivatives; no input requires a gradient.
        with calls.keyed(key), torch.enable_grad():
            out, after = calls(encode.call, params, buffers, key, chunk, where=encode.where)
        return after, tree.map(torch.Tensor.detach, self._encoded(name, out, chunk))

    def _of_loss(
        self,
        calls: ModelCalls,
        params: Any,
        buffers: Any,
        embeddings: dict[Name, Any],
        key: Tensor,
        batch: Any,
        seed: Seed,
    ) -> tuple[Any, Any]:
        """Return `(buffers, metrics)`, and the loss's gradients for parameters and embeddings."""
        flat = {name: tree.flatten(x) for name, x in embeddings.items()}
        real = {name: [x for x in leaves if _is_real(x)] for name, (leaves, _) in flat.items()}

        def run(until: contextlib.ExitStack, x: Any) -> tuple[Tensor, Any]:
            params, real = x
            whole = {}
            for name, (leaves, structure) in flat.items():
                rest = iter(real[name])
                filled = [next(rest) if _is_real(leaf) else leaf for leaf in leaves]
                whole[name] = tree.unflatten(structure, filled)
            out, after = calls(
                self._loss.call,
                params,
                buffers,
                key,
                _loss_input(whole, batch),
                where=self._loss.where,
                until=until,
            )
            total, metrics = split_loss(out, self._loss.where)
            return total, (after, metrics)

        return calls.gradients(run, (params, real), key, self._loss.where, seed)

    def _pull(
        self,
        calls: ModelCalls,
        params: Any,
        name: Name,
        depends: set[Name],
        carry: Any,
        key: Tensor,
        chunk: Any,
        cotangents: list[Tensor],
    ) -> tuple[Any, Any]:
        """Backpropagate the gradients of a chunk's embeddings; add the parameter gradients to totals."""
        totals, buffers = carry
        encode = self._encoders[name]

        def run(until: contextlib.ExitStack, x: Any) -> tuple[Tensor, Any]:
            params, nothing = x
            out, after = calls(
                encode.call, params, buffers, key, chunk, where=encode.where, until=until
            )
            real = [leaf for leaf in tree.leaves(out) if _is_real(leaf)]
            if any(leaf.requires_grad for leaf in real):
                depends.add(name)
            # The gradient of this sum with respect to the embeddings is the cotangents; it is computed
            # in a wide dtype.
            return nothing + sum(
                (_wide(leaf) * _wide(cotangent)).sum()
                for leaf, cotangent in zip(real, cotangents, strict=True)
            ), after

        # `nothing` connects the sum to an input that requires a gradient, because an encoder may be
        # frozen.
        nothing = torch.zeros((), dtype=_wide(cotangents[0]).dtype, device=key.device)
        after, (grads, _) = calls.gradients(
            run, (params, nothing), key, encode.where, site=_site(name)
        )
        return (tree.map(torch.add, totals, grads), after), ()

    def _cut(self, batch: Any) -> dict[Name, Chunks]:
        if None in self._encoders:
            return {None: cut(batch, self._sizes[None], "batch")}
        return {
            name: cut(entry(batch, name), self._sizes[name], f"batch[{name!r}]")
            for name in self._encoders
        }

    def _encoded(self, name: Name, out: Any, chunk: Any) -> Any:
        """Return the embeddings of a chunk; raise unless they have one entry for each row."""
        rows = next(len(x) for x in tree.leaves(chunk) if isinstance(x, Tensor) and x.ndim)
        for path, leaf in zip(tree.paths(out), tree.leaves(out), strict=True):
            where = f"embeddings{path} of {self._encoders[name].where}"
            if not isinstance(leaf, Tensor) or leaf.is_complex():
                raise TypeError(
                    f"{where}: expected a real tensor, got {kind(leaf)}. Return tensors with one entry "
                    "for each row."
                )
            if not leaf.ndim or len(leaf) != rows:
                raise ValueError(
                    f"{where}: expected one entry for each of {rows} rows, got {kind(leaf)}. Give "
                    "several embeddings of a row an axis of their own: (rows, views, width)."
                )
        return out


def _is_real(leaf: Tensor) -> bool:
    return leaf.is_floating_point()


def _wide(x: Tensor) -> Tensor:
    return x.to(sum_dtype(x.dtype))


def _site(name: Name) -> str:
    return "encoder" if name is None else f"encoder {name}"


def _loss_input(embeddings: dict[Name, Any], batch: Any) -> dict[str, Any]:
    found = embeddings.get(None, embeddings)
    return {"embeddings": found, "batch": batch}


def _on_embeddings(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Convert `loss(model, embeddings, batch)` to `fn(model, {"embeddings": ..., "batch": ...})`."""
    if takes(loss, "key"):

        def with_key(model: nn.Module, x: dict[str, Any], key: Tensor) -> Any:
            return loss(model, x["embeddings"], x["batch"], key=key)

        return with_key
    return lambda model, x: loss(model, x["embeddings"], x["batch"])


def _encoder(encode: Encoder) -> _Function:
    if not isinstance(encode, str):
        return _Function(WatchedLoss(encode), describe(encode))
    path = encode

    def of_path(model: nn.Module, inputs: Any) -> Any:
        try:
            found = operator.attrgetter(path)(model)
        except AttributeError:
            known = ", ".join(name for name, _ in model.named_children()) or "none"
            raise ValueError(
                f"encode: expected the name of a submodule or method of the model, got {path!r}; its "
                f"submodules are {known}. Name one of them, or pass a function (model, inputs)."
            ) from None
        return call_model(found, inputs, has_labels=False)

    return _Function(WatchedLoss(of_path), f"`model.{path}`")

"""Options with which a graph is handed to inductor, on processors and devices other than this one."""

from __future__ import annotations

import builtins
import io
import platform
import sys
from typing import Any, ClassVar

import pytest
import torch
import torch._inductor
from torch._inductor import config, ir, lowering
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode

from ftrain.core import _torch_inductor

USUAL = ("linux", "x86_64")


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace inductor by a function that records its options; return the options of each call."""
    found: list[dict[str, Any]] = []

    def standalone_compile(graph: Any, inputs: Any, *, options: Any, **_: Any) -> Any:
        found.append(options["config_patches"])
        return graph

    monkeypatch.setattr(torch._inductor, "standalone_compile", standalone_compile)
    return found


def tensor(device: str) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(2, device=device)


def compiled(mode: str | None = None, *devices: str, **own: Any) -> Any:
    inputs = [tensor(device) for device in devices or ("cpu",)]
    return _torch_inductor.inductor_compile(torch.sin, inputs, mode, own)  # type: ignore[arg-type]


def pretend(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)


@pytest.mark.parametrize(
    ("computer", "known", "skipped"),
    [
        (USUAL, None, True),
        (USUAL, True, False),  # the user's own setting stays
        (USUAL, False, False),
        (("linux", "aarch64"), None, False),
        (("darwin", "x86_64"), None, False),
        (("win32", "AMD64"), None, False),
    ],
)
def test_probe_of_the_compiler_is_skipped_on_x86_linux_unless_the_user_configured_it(
    computer: tuple[str, str],
    known: bool | None,
    skipped: bool,
    handed: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, *computer)
    with config.patch({"cpp.vec_isa_ok": known}):
        assert compiled() is torch.sin
    (patches,) = handed
    assert patches.get("cpp.vec_isa_ok", False) is skipped


class CppCompileError(RuntimeError):
    """Error of the class that inductor raises when the C++ compiler fails."""


@pytest.mark.parametrize("error", [CppCompileError("unknown option -mavx512"), ValueError("other")])
def test_failure_of_the_compiler_is_followed_by_a_second_attempt_with_the_probe(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def standalone_compile(graph: Any, inputs: Any, *, options: Any, **_: Any) -> Any:
        attempts.append("cpp.vec_isa_ok" in options["config_patches"])
        if len(attempts) == 1:
            raise error
        return graph

    pretend(monkeypatch, *USUAL)
    monkeypatch.setattr(torch._inductor, "standalone_compile", standalone_compile)
    with config.patch({"cpp.vec_isa_ok": None}):
        if isinstance(error, CppCompileError):
            assert compiled() is torch.sin
            assert attempts == [True, False]
        else:
            with pytest.raises(ValueError, match="other"):
                compiled()
            assert attempts == [True]


@pytest.mark.parametrize(
    ("devices", "deterministic", "expected"),
    [
        (["cpu"], False, None),
        (["cpu"], True, None),
        (["cuda"], False, None),
        (["cuda"], True, True),
        (["cpu", "cuda"], True, True),
    ],
)
def test_kernels_for_cuda_are_chosen_without_timing_if_torch_is_deterministic(
    devices: list[str],
    deterministic: bool,
    expected: bool | None,
    handed: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    compiled(None, *devices)
    assert handed[0].get("deterministic") is expected


@pytest.mark.parametrize(
    ("mode", "devices", "graphs"),
    [
        (None, ["cuda"], None),
        ("reduce-overhead", ["cuda"], False),  # ftrain captures the graph itself
        ("reduce-overhead", ["cpu", "cuda"], False),
        ("reduce-overhead", ["cpu"], True),
        ("max-autotune-no-cudagraphs", ["cuda"], None),
    ],
)
def test_mode_sets_the_options_of_inductor_except_for_its_cuda_graphs(
    mode: str | None, devices: list[str], graphs: bool | None, handed: list[dict[str, Any]]
) -> None:
    compiled(mode, *devices, own_option=3)
    (patches,) = handed
    assert patches.get("triton.cudagraphs") is graphs
    others = torch._inductor.list_mode_options(mode) if mode else {}
    assert patches.items() >= {k: v for k, v in others.items() if k != "triton.cudagraphs"}.items()
    assert patches["own_option"] == 3
    assert patches["size_asserts"] is False


def test_compiled_function_is_called_without_the_wrapper_of_an_artifact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Artifact:
        _compiled_fn = staticmethod(torch.cos)

    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda *_, **__: Artifact())
    assert compiled() is torch.cos


AMD, INTEL = "vendor_id\t: AuthenticAMD\n", "vendor_id\t: GenuineIntel\n"


@pytest.mark.parametrize(
    ("system", "capability", "cpuinfo", "expected"),
    [
        ("linux", "AVX512", "processor\t: 0\n" + AMD, True),
        ("linux", "AVX512", INTEL + "model name\t: not AuthenticAMD\n", False),
        ("linux", "AVX2", AMD, False),
        ("linux", "DEFAULT", AMD, False),
        ("darwin", "AVX512", AMD, False),
        ("linux", "AVX512", None, False),
    ],
)
def test_processor_with_slow_products_in_mkl_is_an_amd_with_avx512(
    system: str,
    capability: str,
    cpuinfo: str | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opened(path: Any, *args: Any, **kwargs: Any) -> Any:
        if cpuinfo is None:
            raise PermissionError(path)
        return io.StringIO(cpuinfo)

    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", system)
        patched.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        patched.setattr(builtins, "open", opened)
        found = _torch_inductor.is_amd_with_avx512.__wrapped__()
    assert found is expected


@pytest.mark.parametrize(
    ("is_amd", "has_onednn", "expected"),
    [(True, True, True), (False, True, False), (True, False, False)],
)
def test_onednn_multiplies_on_an_amd_with_avx512_if_this_build_has_it(
    is_amd: bool, has_onednn: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(_torch_inductor, "is_amd_with_avx512", lambda: is_amd)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_onednn)
    assert (_torch_inductor.onednn_product() is not None) is expected


@pytest.mark.parametrize(
    ("raised", "reported"),
    [(None, False), (ModuleNotFoundError("no triton"), False), (RuntimeError("no driver"), True)],
)
def test_error_of_tritons_driver_is_reported_unless_triton_is_not_installed(
    raised: Exception | None, reported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Active:
        def get_current_device(self) -> int:
            asked.append(1)
            if raised is not None:
                raise raised
            return 0

    class Runtime:
        class driver:
            active = Active()

    monkeypatch.setattr(_torch_inductor.importlib, "import_module", lambda name: Runtime)
    assert _torch_inductor.triton_error() is (raised if reported else None)
    assert asked


def test_layouts_of_every_factorized_matrix_are_those_of_the_trace(
    handed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    monkeypatch.setattr(lowering, "add_layout_constraint", found.__setitem__)
    _torch_inductor.keep_layouts.cache_clear()
    compiled()
    expected = dict.fromkeys(_torch_inductor.FACTORIZED, lowering.constrain_to_fx_strides)
    assert found == expected
    compiled()
    _torch_inductor.keep_layouts.cache_clear()  # the next compilation adds them in earnest


class Buffer(ir.IRNode):
    """Buffer of a program that inductor generates."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_name(self) -> str:
        return self.name


@pytest.mark.parametrize("several", [True, False])
def test_memory_of_a_loops_carries_and_results_is_not_reused(
    several: bool, handed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class WhileLoop:
        def __init__(self, carried_inputs: Any, extra: int) -> None:
            made.append((carried_inputs, extra))

        @classmethod
        def create(cls, *carried: Any) -> Any:
            cls([*carried, 3], extra=1)  # a number needs no memory
            return [Buffer("out0"), Buffer("out1")] if several else Buffer("out0")

    class Graph:
        never_reuse_buffers: ClassVar[set[str]] = set()

    monkeypatch.setattr(Graph, "never_reuse_buffers", set())
    monkeypatch.setattr(ir, "WhileLoop", WhileLoop)
    _torch_inductor.keep_carries.cache_clear()
    compiled()
    carried = [Buffer("in0"), Buffer("in1")]
    with V.set_graph_handler(Graph()):
        outputs = ir.WhileLoop.create(*carried)
    assert made == [([*carried, 3], 1)]
    names = [each.name for each in (outputs if several else [outputs])]
    assert names == (["out0", "out1"] if several else ["out0"])
    assert Graph.never_reuse_buffers == {"in0", "in1", *names}
    _torch_inductor.keep_carries.cache_clear()

"""Lines of inductor's programs that write to an argument; unknown forms count as writes."""

from __future__ import annotations

import linecache
import textwrap
from typing import Any

import pytest
import torch

from ftrain.core.compile._failed_donation import before_writes, may_have_written
from ftrain.core.compile._program_writes import ProgramModule

TRITON = '''
triton_{0} = async_compile.triton('triton_{0}', """
@triton.jit
def _triton_helper_fn_add0(arg0_0, arg1_0):
    return arg0_0 + arg1_0

@triton_heuristics.pointwise(inductor_meta={{'mutated_arg_names': [{1}]}})
@triton.jit
def triton_{0}(in_out_ptr0, in_ptr0, in_ptr1, out_ptr0, xnumel, XBLOCK : tl.constexpr):
    tl.store(out_ptr0 + (x0), tmp0, None)
""", device_str='cuda')
'''

HEAD = (
    TRITON.format("plain", "'in_out_ptr0'")
    + TRITON.format("twice", "'in_out_ptr0', 'in_ptr1', 'out_ptr0'")
    + """
cpp_fused = async_compile.cpp_pybinding(['const float*', 'float*', 'const int64_t'], '')

def reads(args):
    reads_arg0_1, = args
    args.clear()
    reads_buf0 = empty_strided_cuda((2, ), (1, ), torch.float32)
    return (reads_buf0, )

def carries(args):
    carries_arg0_1, carries_arg1_1 = args
    args.clear()
    triton_plain.run(carries_arg0_1, carries_arg1_1, carries_arg1_1, carries_arg0_1, 2)
    return (carries_arg0_1, )

def passes(args):
    passes_arg0_1, = args
    return (reinterpret_tensor(passes_arg0_1, (2, ), (1, ), 0), )

def passes_or_not(args):
    passed_arg0_1, passed_arg1_1 = args
    if flag:
        return (empty_strided_cuda((2, ), (1, ), torch.float32), passed_arg1_1)
    return (passed_arg0_1, passed_arg1_1)

def unclear(args):
    unclear_arg0_1, = args
    if flag:
        return (empty_strided_cuda((2, ), (1, ), torch.float32), )
    return unclear_arg0_1

def partition_0(args):
    arg0_1, buf0 = args
    args.clear()
    buf1 = empty_strided_cuda((2, ), (1, ), torch.float32)
    triton_plain.run(buf1, arg0_1, buf0, arg0_1, 2, stream=stream0)
    return (buf1, )
"""
)

BODY = """
class Runner:
    def call(self, args):
        arg0_1, arg1_1 = args
        args.clear()
        with torch.cuda._DeviceGuard(0):
            torch.cuda.set_device(0)
            buf0 = empty_strided_cuda((2, ), (1, ), torch.float32)
{body}
        return (buf0, )
"""

CARRY = """
buf1 = [None] * 1
buf1[0] = {first}
carries_args = [buf1[0], {second}]
while should_loop:
    carries_args = [buf1[0], {second}]
    (buf1[0], ) = carries(carries_args)
buf2 = buf1[0]
cpp_fused(buf2, buf0, 2)
"""


def program(body: str, name: str) -> ProgramModule:
    source = HEAD + BODY.format(body=textwrap.indent(textwrap.dedent(body).strip(), " " * 12))
    lines = source.splitlines(keepends=True)
    linecache.cache[name] = (len(source), None, lines, name)
    module = ProgramModule.read(name)
    assert module is not None
    return module


@pytest.mark.parametrize(
    "line",
    [
        "arg1_1 = copy_if_misaligned(arg1_1)",
        "triton_plain.run(buf0, arg0_1, arg1_1, buf0, 2, stream=raw_stream0)",
        "cpp_fused(arg0_1, buf0, 2)",
        "extern_kernels.mm(arg0_1, reinterpret_tensor(arg1_1, (2, ), (1, ), 0), out=buf0)",
        "buf1 = extern_kernels.convolution(arg0_1, arg1_1, stride=(1, ))",
        "buf1 = torch.ops.aten.sort.stable(arg0_1, stable=True)",
        "assert_size_stride(arg0_1, (2, ), (1, ))",
        "u0 = arg0_1.item()\nif not (u0 >= 0):\n    raise RuntimeError('u0 >= 0')",
        "del arg0_1",
        "reads_args = [arg0_1]\n(buf1, ) = reads(reads_args)\ncpp_fused(buf0, buf1, 2)",
        "buf1 = [None] * 1\nbuf1[0] = arg0_1\nwhile should_loop:\n    (buf1[0], ) = reads([buf1[0]])",
        # A loop that writes into its carry, a copy, and only reads the argument.
        CARRY.format(first="arg0_1.clone()", second="arg1_1"),
        "both = [arg0_1, buf0]\ncpp_fused(arg0_1, both[1], 2)",
        "buf1 = [None] * 2\nbuf1[0] = arg0_1\nbuf1[1] = buf0\nbuf1[1].copy_(buf0)",
        "assert arg0_1.item() > 0",
        "if arg0_1.item() > 0:\n    cpp_fused(arg0_1, buf0, 2)\nelse:\n    cpp_fused(arg1_1, buf0, 2)",
        "buf1, buf2 = arg0_1, buf0\ncpp_fused(arg0_1, buf2, 2)",
        "[buf1, buf2] = [arg0_1, buf0]\ncpp_fused(arg0_1, buf2, 2)",
        "two = [arg0_1, buf0]\n(buf1, buf2) = two\ncpp_fused(buf1, buf2, 2)",
        "both = [buf0, arg0_1]\ncpp_fused(arg0_1, both[0], 2)",
        "while flag:\n    both = [*[buf0], buf0]\n    cpp_fused(arg0_1, buf0, 2)",
        "buf1 = torch.ops.aten.sin.default(arg0_1)\ncpp_fused(arg0_1, buf1, 2)",
        "reads_args = [arg0_1]\nboth = reads(reads_args)\ncpp_fused(arg0_1, both[0], 2)",
        "two = [buf0, arg0_1]\n(buf1, buf2) = passes_or_not(two)\ncpp_fused(buf2, buf1, 2)",
        # Results in new memory, which later lines may write to.
        "buf1 = extern_kernels.convolution(arg0_1, arg1_1)\ncpp_fused(arg0_1, buf1, 2)",
        "buf1 = torch.stack([arg0_1, arg1_1])\ncpp_fused(arg0_1, buf1, 2)",
        "buf1 = arg0_1.clone()\ncpp_fused(arg0_1, buf1, 2)",
    ],
)
def test_search_for_the_first_write_ignores_lines_that_only_read_arguments(line: str) -> None:
    assert program(line, f"harmless: {line}").first_write("call") is None


@pytest.mark.parametrize(
    "line",
    [
        "triton_plain.run(arg0_1, buf0, buf0, buf0, 2, stream=raw_stream0)",
        "triton_plain.run(buf0, buf0, buf0, arg0_1, 2, stream=raw_stream0)",
        "triton_twice.run(buf0, buf0, arg0_1, buf0, 2, stream=raw_stream0)",
        "triton_unknown.run(buf0, arg0_1, 2, stream=raw_stream0)",
        "triton_plain.run(buf0, in_ptr0=arg0_1)",
        "triton_plain.run(*[buf0, arg0_1])",
        "cpp_fused(buf0, arg0_1, 2)",
        "extern_kernels.mm(buf0, buf0, out=reinterpret_tensor(arg0_1, (2, ), (1, ), 0))",
        "extern_kernels.unknown(buf0, arg0_1)",
        "torch.ops.aten.add_.Tensor(arg0_1, buf0)",
        "torch.ops.aten.native_batch_norm.default(buf0, None, None, arg0_1, arg1_1, True, 0.1, 1e-5)",
        "torch.ops.missing.operator.default(arg0_1)",
        "arg0_1.copy_(buf0)",
        "arg0_1[0] = buf0",
        "arg0_1 += buf0",
        "[cpp_fused(buf0, x, 2) for x in [arg0_1]]",
        "buf1 = arg0_1; del arg0_1  # reuse\ncpp_fused(buf0, buf1, 2)",
        "buf1 = copy_if_misaligned(arg0_1)\ncpp_fused(buf0, buf1, 2)",
        "buf1 = torch.ops.aten.view.default(arg0_1, [2])\ncpp_fused(buf0, buf1, 2)",
        "buf1 = torch.ops.aten.reshape.default(arg0_1, [2])\ncpp_fused(buf0, buf1, 2)",
        "passes_args = [arg0_1]\n(buf1, ) = passes(passes_args)\ncpp_fused(buf0, buf1, 2)",
        "for x in [arg0_1]:\n    cpp_fused(buf0, x, 2)",
        "if flag:\n    cpp_fused(buf0, arg0_1, 2)",
        "while flag:\n    cpp_fused(buf0, buf1, 2)\n    buf1 = buf2\n    buf2 = arg0_1",
        "with anything():\n    cpp_fused(buf0, arg0_1, 2)",
        "partition0_args = [arg0_1, buf0]\n(buf1, ) = self.partitions[0](partition0_args)",
        "(buf1, ) = self.partitions[1]([arg0_1])",
        "buf1 = [None]\nbuf2 = buf1\nbuf2[0] = arg0_1",
        CARRY.format(first="arg0_1", second="arg1_1"),
        CARRY.format(first="arg0_1.clone()", second="arg1_1").replace("[buf1[0], ", "[arg1_1, "),
        "both = [buf0, arg0_1]\ncpp_fused(buf0, both[1], 2)",
        "both = [buf0]\nif flag:\n    both = [arg0_1]\nboth[0].copy_(buf0)",
        "both = [arg0_1]\nif flag:\n    both = [buf0]\nboth[0].copy_(buf0)",
        "both = [arg0_1]\nboth = buf0\nboth = [buf0]\nif flag:\n    both[0].copy_(buf0)",
        "both = [buf0]\nboth.append(arg0_1)\ncpp_fused(buf0, both[1], 2)",
        "both = [buf0]\nboth.append(arg0_1)\ncarries(both)",
        "both = [buf0, buf0]\nboth[i] = arg0_1\ncpp_fused(buf0, both[0], 2)",
        "both = [*[buf0], arg0_1]\ncpp_fused(buf0, both[1], 2)",
        "both = [arg0_1, buf0]\ncarries(both)",
        "two = [buf0, buf0]\nwhile flag:\n    carries(two)\n    two[0] = two[1]\n    two[1] = arg0_1",
        "tensor = [buf0]\ntensor, = [arg0_1]\ntensor[0] = buf0",
        "both = [buf0]\nif flag:\n    both = [arg0_1, buf0]\ncpp_fused(buf0, both[0], 2)",
        "both = [buf0]\nboth = arg0_1\ncpp_fused(buf0, both[0], 2)",
        "both = [buf0]\nboth.clear()\nboth.append(arg0_1)\ncpp_fused(buf0, both[0], 2)",
        "passes_args = [arg0_1]\nboth = passes(passes_args)\ncpp_fused(buf0, both[0], 2)",
        "both = arg0_1\nif flag:\n    both = [buf0]\ncpp_fused(buf0, both[0], 2)",
        "while flag:\n    both = [*[buf0], arg0_1]\n    cpp_fused(buf0, both[1], 2)",
        "arg0_1.data = buf0",
        "self.kept = arg0_1",
        "assert unknown(arg0_1)",
        "raise unknown(arg0_1)",
        "if unknown(arg0_1):\n    pass",
        "while unknown(arg0_1):\n    pass",
        "if flag:\n    pass\nelse:\n    cpp_fused(buf0, arg0_1, 2)",
        "return unknown(arg0_1)",
        "buf1, buf2 = buf0, arg0_1\ncpp_fused(buf0, buf2, 2)",
        "two = [buf0, arg0_1]\n(buf1, buf2) = two\ncpp_fused(buf0, buf2, 2)",
        "two = [buf0, arg0_1]\n(buf1, buf2) = passes_or_not(two)\ncpp_fused(buf0, buf2, 2)",
        "two = [arg0_1, buf0]\n(buf1, buf2) = passes_or_not(two)\ncpp_fused(buf0, buf1, 2)",
        "unclear_args = [arg0_1]\n(buf1, ) = unclear(unclear_args)\ncpp_fused(buf0, buf1, 2)",
        "while flag:\n    cpp_fused(buf0, n0, 2)\n"  # a value that needs many iterations
        + "".join(f"    n{i} = n{i + 1}\n" for i in range(150))
        + "    n150 = arg0_1",
    ],
)
def test_search_for_the_first_write_finds_lines_that_may_write_to_an_argument(line: str) -> None:
    assert program(line, f"write: {line}").first_write("call") is not None


def outcome(fails: str) -> bool:
    """Run a program whose first partition writes, and which fails in the function `fails`."""
    name = f"<program that fails in {fails}>"
    module = program(
        """
        partition0_args = [arg0_1, buf0]
        (buf1, ) = self.partitions[0](partition0_args)
        late()
        """,
        name,
    )
    assert module is not None

    class Kernel:
        def run(self, *args: Any, **kwargs: Any) -> None:
            if fails == "kernel":
                raise RuntimeError

    n_allocations = 0

    def allocate(*args: Any) -> torch.Tensor:
        nonlocal n_allocations
        n_allocations += 1
        if fails == f"allocation {n_allocations}":
            raise torch.OutOfMemoryError
        return torch.empty(2)

    def late() -> None:
        if fails == "late":
            raise torch.OutOfMemoryError

    class Guard:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            if fails == "leaving":
                raise KeyboardInterrupt

    class Torch:
        float32 = torch.float32

        class cuda:
            set_device = staticmethod(lambda i: None)
            _DeviceGuard = staticmethod(lambda i: Guard())

    class AsyncCompile:
        triton = staticmethod(lambda *_, **__: Kernel())
        cpp_pybinding = staticmethod(lambda *_: None)

    scope: dict[str, Any] = {
        "async_compile": AsyncCompile,
        "reinterpret_tensor": None,
        "empty_strided_cuda": allocate,
        "torch": Torch,
        "stream0": 0,
        "late": late,
    }
    exec(compile("".join(linecache.getlines(name)), name, "exec"), scope)
    runner = scope["Runner"]()
    runner.partitions = [scope["partition_0"]]
    try:
        runner.call([torch.empty(2), torch.empty(2)])
    except BaseException as error:
        return may_have_written(error)
    raise AssertionError("nothing failed")


def test_failure_in_a_graph_partition_before_its_first_write_is_known_to_have_written_nothing() -> (
    None
):
    assert not outcome("allocation 1")  # in `call`
    assert not outcome("allocation 2")  # in the partition
    assert outcome("kernel")
    assert outcome("late")
    assert outcome("leaving")


def test_error_of_a_function_decorated_with_before_writes_counts_as_before_any_write() -> None:
    @before_writes
    def fails() -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError) as declared:
        fails()
    assert not may_have_written(declared.value)


def test_failure_outside_of_a_compiled_program_is_assumed_to_have_written() -> None:
    with pytest.raises(torch.OutOfMemoryError) as outside:
        raise torch.OutOfMemoryError
    assert may_have_written(outside.value)


@pytest.mark.parametrize(("line", "written"), [(2, False), (3, True), (4, True)])
def test_graph_run_line_by_line_has_written_from_the_line_of_its_first_copy_on(
    line: int, written: bool
) -> None:
    source = "def forward(fail):\n    fail(2)\n    a.copy_.default(fail(3))\n    fail(4)\n"
    name = f"<eval_with_key>.fails in line {line}"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)

    def fail(at: int) -> None:
        if at == line:
            raise torch.OutOfMemoryError

    class Packet:
        class copy_:
            default = staticmethod(lambda _: None)

    scope: dict[str, Any] = {"a": Packet}
    exec(compile(source, name, "exec"), scope)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        scope["forward"](fail)
    assert may_have_written(raised.value) is written

"""The compiled kernels against the plain ones in float64: sizes, instruction sets, threads, strides."""

import ctypes
import dataclasses
import functools
import math
import os
import re
import signal
import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import grid_call
from lambdanets import GridPositions, lambda_apply
from lambdanets.kernels.grid import spread
from lambdanets.kernels.grid.compiled import binding, spectral
from lambdanets.kernels.grid.compiled.binding import QUERY_FIRST, SPECTRAL
from lambdanets.kernels.grid.contract import GridInputs
from lambdanets.kernels.grid.planner import GRID_KERNELS

LIBRARY = binding.library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=f"without compiled kernels: {binding.absence()}")
KERNELS = {
    name.removesuffix("_compiled"): kernel.forward.args[0]  # its number in the library
    for name, kernel in GRID_KERNELS.items()
    if kernel.compiled
}
LEVELS = [] if LIBRARY is None else [name for name, _ in LIBRARY.levels]


class Memory:
    """Scratch memory full of NaN, and a margin behind it that nothing may write into."""

    MARGIN = 64

    def __init__(self):
        self.given = []

    def scratch(self, like, *shape):
        buffer = torch.full((math.prod(shape) + self.MARGIN,), math.nan)
        buffer[-self.MARGIN :] = 7.0
        self.given.append(buffer)
        return buffer[: -self.MARGIN]

    def assert_margins(self):
        assert self.given
        assert all((buffer[-self.MARGIN :] == 7.0).all() for buffer in self.given)


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    found = dataclasses.replace(LIBRARY, name=request.param)
    monkeypatch.setattr(binding, "_load", lambda: found)
    return request.param


@pytest.fixture
def threads():
    """Sets the number of threads; afterwards it is as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@dataclasses.dataclass
class Inputs:
    grad: torch.Tensor
    query: torch.Tensor
    value: torch.Tensor
    table: torch.Tensor
    content: torch.Tensor | None
    grid: tuple[int, ...]
    origin: tuple[int, ...]

    @property
    def of_kernel(self):
        """The inputs with the whole table, though some offsets may be out of reach."""
        cut = GridInputs.of(self.query, self.value, self.table, self.grid, self.origin, self.content)
        problem = dataclasses.replace(cut.problem, extents=tuple(self.table.shape[2:]), origin=self.origin)
        return dataclasses.replace(cut, table=self.table, problem=problem)

    @property
    def problem(self):
        return self.of_kernel.problem


def inputs(grid, extents, origin=None, *, b=2, h=3, k=4, v=5, u=1, content=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    n = math.prod(grid)
    return Inputs(
        random(b, h, n, v),
        random(b, h, n, k),
        random(b, u, n, v),
        random(u, k, *extents),
        random(b, k, v) if content else None,
        tuple(grid),
        tuple(extent // 2 for extent in extents) if origin is None else tuple(origin),
    )


def run(kernel, given):
    """Output and gradients, in memory that is NaN at first."""
    memory = Memory()
    out = binding.forward(KERNELS[kernel], given.of_kernel, memory)
    grads = binding.backward(KERNELS[kernel], given.grad, given.of_kernel, memory)
    memory.assert_margins()
    return [t for t in (out, *grads) if t is not None]


def written_out(given):
    """E of every pair of positions, (n, m, k, u)."""
    axes = [torch.arange(size) for size in given.grid]
    places = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    offsets = places[None, :] - places[:, None] + torch.tensor(given.origin)
    extents = torch.tensor(given.table.shape[2:])
    inside = ((offsets >= 0) & (offsets < extents)).all(-1)
    index = offsets.clamp(min=0).minimum(extents - 1)
    found = given.table[(slice(None), slice(None), *index.unbind(-1))]
    return (found * inside).permute(2, 3, 1, 0)


def exact(given):
    """Output and gradients in float64, from E written out."""
    leaves = [t.double().requires_grad_() for t in (given.query, given.value, given.table)]
    content = None if given.content is None else given.content.double().requires_grad_()
    query, value, table = leaves
    embedding = written_out(dataclasses.replace(given, table=table))
    scores = torch.einsum("bhnk,nmku->bhnmu", query, embedding)
    out = torch.einsum("bhnmu,bumv->bhnv", scores, value)
    if content is not None:
        out = out + query @ content[:, None]
        leaves.append(content)
    return [out.detach(), *torch.autograd.grad(out, leaves, given.grad.double())]


def squared(given):
    """The same inputs squared, so that each sum becomes the sum of its products' squares."""
    names = ("grad", "query", "value", "table") + (("content",) if given.content is not None else ())
    return dataclasses.replace(given, **{name: getattr(given, name).square() for name in names})


def relative_errors(actual, given):
    """Errors relative to the result, or to the root of its products' squares where the products nearly cancel."""
    expected = exact(given)
    sizes = [torch.maximum(e.abs().max(), s.max().sqrt()) for e, s in zip(expected, exact(squared(given)), strict=True)]
    assert len(actual) == len(expected)
    return [
        ((a.double() - e).abs().max() / size.clamp(min=1e-30)).item()
        for a, e, size in zip(actual, expected, sizes, strict=True)
    ]


def assert_near(kernel, given):
    errors = relative_errors(run(kernel, given), given)
    assert max(errors) < 3e-6, errors


# Rank 1 and 2; one position, local, global, tables that are larger than the grid, lopsided as in causal order.
SHAPES = [
    ((1,), (1,), None),
    ((40,), (79,), None),
    ((33,), (7,), None),
    ((21,), (21,), (20,)),
    ((1, 1), (1, 1), None),
    ((7, 7), (13, 13), None),
    ((5, 9), (3, 17), None),
    ((9, 17), (5, 3), None),
    ((1, 13), (1, 5), None),
    ((13, 1), (25, 1), None),
    ((6, 10), (6, 19), (5, 9)),
    ((10, 6), (5, 3), (0, 2)),
]


# Channels in a point of AVX2, and those that need one of AVX-512.
FEW, MANY = 5, 17


@pytest.mark.parametrize("v", [FEW, MANY])
@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize(("grid", "extents", "origin"), SHAPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_exact(kernel, grid, extents, origin, content, v, level):
    assert_near(kernel, inputs(grid, extents, origin, u=2, v=v, content=content))


@pytest.mark.parametrize("width", range(1, 41))
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_width(kernel, width):
    assert_near(kernel, inputs((3, width), (3, 2 * width - 1), v=FEW))
    assert_near(kernel, inputs((3, width), (5, 5), (2, 2), v=MANY))


@pytest.mark.skipif("avx512" not in LEVELS, reason="no AVX-512")
def test_few_channels_go_through_avx2(monkeypatch):
    for v in (16, 17):
        given, results = inputs((5, 6), (9, 11), v=v), []
        for name in ("avx512", "avx2"):
            found = dataclasses.replace(LIBRARY, name=name)
            monkeypatch.setattr(binding, "_load", functools.partial(lambda library: library, found))
            results.append(run("spectral", given))
        same = all(torch.equal(wide, narrow) for wide, narrow in zip(*results, strict=True))
        assert same == (v == 16)


@pytest.mark.smoke
@pytest.mark.parametrize("h", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize(("k", "v"), [(1, 1), (3, 7), (8, 8), (16, 17), (5, 31), (7, 33), (2, 100)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_heads_and_depths_that_fill_no_vector(kernel, h, k, v, level):
    assert_near(kernel, inputs((4, 5), (5, 5), h=h, k=k, v=v))


@pytest.mark.parametrize(
    ("grid", "extents", "k", "v"),
    [
        ((150,), (299,), 3, 70),  # several chunks of columns, each of them wider than a part of the window
        ((150,), (141,), 3, 70),
        ((30, 5), (59, 9), 3, 70),  # chunks of whole rows, of nearly the same number
        ((26, 12), (23, 9), 3, 70),  # of windows: rows with all of the table's columns, and fewer at the border
        ((12, 14), (9, 9), 16, 33),
    ],
)
def test_query_first_of_several_chunks(grid, extents, k, v, level):
    assert_near("query_first", inputs(grid, extents, b=1, k=k, v=v, u=2))


@pytest.mark.parametrize(("rows", "depth"), [(4, 4), (5, 6), (7, 9), (3, 8), (8, 3)])
def test_depth_in_front_of_few_positions(rows, depth, level):
    """Blocks that are transposed four by four, where the last four are partly those before."""
    given = inputs((2, rows), (3, 3), k=depth, v=depth)
    for name in ("grad", "query", "value"):
        setattr(given, name, getattr(given, name).mT.contiguous().mT)
    assert_near("query_first", given)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kernel", KERNELS)
def test_any_shape(kernel, data):
    rank = data.draw(st.integers(1, 2))
    grid = tuple(data.draw(st.integers(1, (60, 12)[rank - 1])) for _ in range(rank))
    origin = tuple(data.draw(st.integers(0, size - 1)) for size in grid)
    extents = tuple(o + 1 + data.draw(st.integers(0, size - 1)) for o, size in zip(origin, grid, strict=True))
    sizes = {name: data.draw(st.integers(1, most)) for name, most in dict(b=3, h=6, k=9, v=20, u=3).items()}
    assert_near(kernel, inputs(grid, extents, origin, content=data.draw(st.booleans()), **sizes))


@pytest.mark.parametrize("kernel", KERNELS)
def test_sums_that_nearly_cancel(kernel):
    """Rounding is of the products' size: these gradients of table and value are a thousandth of it."""
    given = inputs((5, 6), (5, 7), h=6, content=False)
    given.query[:, 3:] = given.query[:, :3]
    given.grad[:, 3:] = given.grad[:, :3] * -0.999
    assert_near(kernel, given)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(("b", "v"), [(1, 9), (1, 40), (3, 40)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_threads(kernel, b, v, count, threads, monkeypatch):
    """Slots that begin and end within an example, several to an example, and several to a group of channels."""
    monkeypatch.setattr(binding, "SLOT_MULTIPLY_ADDS", 1)
    binding._plan.cache_clear()
    threads(count)
    given = inputs((6, 7), (11, 13), b=b, k=5, v=v, u=2)
    slots = binding._plan(LIBRARY, KERNELS[kernel], given.problem, count, True, True)[1]
    assert slots == count
    assert_near(kernel, given)
    binding._plan.cache_clear()


@pytest.mark.parametrize("kernel", KERNELS)
def test_little_scratch_memory_is_for_fewer_slots(kernel, threads, monkeypatch):
    """Halved until they have room; one has it in any case."""
    monkeypatch.setattr(binding, "SLOT_MULTIPLY_ADDS", 1)
    binding._plan.cache_clear()
    threads(4)
    given = inputs((6, 7), (11, 13), b=3, k=5, v=9, u=2)

    def plan(threads):
        return binding._plan(LIBRARY, KERNELS[kernel], given.problem, threads, True, True)[1:]

    _, of_two = plan(2)
    assert plan(4)[0] == 4
    for floats, slots in ((of_two, 2), (1, 1)):
        monkeypatch.setattr(binding, "SCRATCH_FLOATS", floats)
        binding._plan.cache_clear()
        assert plan(4)[0] == slots
        assert_near(kernel, given)
    binding._plan.cache_clear()


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_slot_wakes_no_threads(kernel, threads, monkeypatch):
    asked = []

    @ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_void_p)
    def refuse(begin, end, grain, body, context):
        asked.append(end - begin)
        return 1  # so the library does it all itself

    threads(4)
    given = inputs((5, 5), (9, 9))
    LIBRARY.handle.lambdanets_use_threads(ctypes.cast(refuse, ctypes.c_void_p))
    try:
        run(kernel, given)
        assert asked == []
        monkeypatch.setattr(binding, "SLOT_MULTIPLY_ADDS", 1)
        binding._plan.cache_clear()
        run(kernel, given)
        assert asked
    finally:
        LIBRARY.handle.lambdanets_use_threads(binding._parallel_for())
        binding._plan.cache_clear()


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_runs_at_once_writes_apart(kernel, threads, monkeypatch):
    """No two items of a parallel loop write one element of a result. One after the other here, the last ones first.

    Here examples are split between slots, of which there are more than positions.
    """
    monkeypatch.setattr(binding, "SLOT_MULTIPLY_ADDS", 1)
    call, results, twice = binding._call, [], []

    def watched(*arguments):
        results[:] = [arguments[4], *(grad for grad in arguments[5:] for grad in grad if grad is not None)]
        call(*arguments)

    monkeypatch.setattr(binding, "_call", watched)

    @ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_void_p)
    def one_by_one(begin, end, grain, body, context):
        run_range = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(body)
        written = [torch.zeros_like(result, dtype=torch.bool) for result in results]
        for item in reversed(range(begin, end)):
            before = [result.clone() for result in results]
            run_range(item, item + 1, context)
            for index, (result, old) in enumerate(zip(results, before, strict=True)):
                changed = result.view(torch.int32) != old.view(torch.int32)
                twice.append(bool((changed & written[index]).any()))
                written[index] |= changed
        return 0

    threads(8)
    binding._plan.cache_clear()
    LIBRARY.handle.lambdanets_use_threads(ctypes.cast(one_by_one, ctypes.c_void_p))
    try:
        assert_near(kernel, inputs((3, 1), (5, 3), b=5))
    finally:
        LIBRARY.handle.lambdanets_use_threads(binding._parallel_for())
        binding._plan.cache_clear()
    assert len(twice) > 0
    assert not any(twice)


@pytest.mark.parametrize("kernel", KERNELS)
def test_same_bits_for_the_same_number_of_threads(kernel, threads):
    threads(2)
    given = inputs((14, 14), (27, 27), h=4, k=16, v=64)
    first = run(kernel, given)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(kernel, given), strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_strides_do_not_matter(kernel):
    """Views as layers hand them over: depth in front of positions, heads behind them, slices, one element expanded."""
    given = inputs((6, 7), (5, 13), k=8, v=12, u=2)
    expected = run(kernel, given)

    def views(change):
        changed = {name: change(getattr(given, name)) for name in ("grad", "query", "value", "table", "content")}
        return dataclasses.replace(given, **changed)

    orders = [
        lambda t: t.mT.contiguous().mT,
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    ]
    for order in orders:
        assert all(torch.equal(a, b) for a, b in zip(run(kernel, views(order)), expected, strict=True))
    expanded = dataclasses.replace(given, grad=torch.ones(()).expand(given.grad.shape))
    assert_near(kernel, expanded)


@pytest.mark.parametrize("kernel", KERNELS)
def test_results_are_in_the_memory_order_of_the_inputs(kernel):
    given = inputs((6, 7), (5, 13))
    given.query, given.value = (t.mT.contiguous().mT for t in (given.query, given.value))
    out, grad_query, grad_value, *_ = run(kernel, given)
    assert all(t.mT.is_contiguous() for t in (out, grad_query, grad_value))


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_are_left_as_they_were(kernel):
    given = inputs((6, 7), (5, 13))
    tensors = [given.grad, given.query, given.value, given.table, given.content]
    before = [t.clone() for t in tensors]
    run(kernel, given)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("grid", "extents"), [((6, 7), (5, 5)), ((6, 7), (11, 13)), ((40,), (79,)), ((40,), (9,))])
@pytest.mark.parametrize("kernel", KERNELS)
def test_by_name_in_the_op(kernel, grid, extents, masked, causal, dtype):
    """Both terms, or the position term alone beside a causal content term, behind the public function."""
    call = grid_call(grid, extents, k=8, v=16, u=2, dtype=dtype)
    call.causal = causal
    call.mask = torch.rand(2, math.prod(grid)) < 0.6 if masked else None
    exact = [t.double() for t in call.args[:3]]
    expected = lambda_apply(
        *exact, GridPositions(call.positions.table.double(), grid), **call.kwargs, kernel="reference"
    )
    out = lambda_apply(*call.args, **call.kwargs, kernel=f"{kernel}_compiled")
    assert out.dtype == dtype
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error < max(3e-6, torch.finfo(dtype).eps)


def test_query_first_keeps_what_is_out_of_scope_apart(level):
    """Not even the padding of vectors may carry infinity into outputs that do not see it."""
    given = inputs((5, 9), (3, 3), h=4)
    given.value[:, :, 22] = math.inf
    out = run("query_first", given)[0].view(2, 4, 5, 9, 5)
    seen = torch.zeros(5, 9, dtype=torch.bool)
    seen[1:4, 3:6] = True
    assert out[:, :, ~seen].isfinite().all()
    assert not out[:, :, seen].isfinite().any()


@pytest.mark.parametrize("name", ["lambdanets_forward", "lambdanets_backward"])
def test_scratch_memory_is_held_during_the_call(name, monkeypatch):
    """Memory that the workspace does not keep would be freed, or another's, before the kernel writes into it."""
    alive = []

    class Fresh:
        def scratch(self, like, *shape):
            tensor = torch.empty(shape)
            self.given = weakref.ref(tensor)
            return tensor

    class Spy:
        def __getattr__(self, attribute):
            if attribute == name:
                alive.append(memory.given() is not None)
            return getattr(LIBRARY.handle, attribute)

    memory = Fresh()
    monkeypatch.setattr(binding, "_load", lambda: dataclasses.replace(LIBRARY, handle=Spy()))
    given = inputs((4, 5), (3, 3))
    if name == "lambdanets_forward":
        binding.forward(QUERY_FIRST, given.of_kernel, memory)
    else:
        binding.backward(QUERY_FIRST, given.grad, given.of_kernel, memory)
    assert alive == [True]


def test_reasons():
    image = inputs((6, 7), (5, 13)).problem
    assert binding.check(image) is None
    assert "float64" in binding.check(dataclasses.replace(image, dtype=torch.float64))
    volume = dataclasses.replace(image, grid=(2, 3, 7), extents=(1, 1, 1), origin=(0, 0, 0))
    assert "rank 3" in binding.check(volume)


def python(code, **environment):
    """Standard output of another process."""
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=1800
    )
    return result.stdout.strip() + result.stderr.strip()[-500:]


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Looks for the library again, in the files that a test names."""
    monkeypatch.delenv(binding.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(binding, "_load", binding._load.__wrapped__)
    (tmp_path / "text.so").write_text("no library", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["text.so", "nowhere.so"])
def test_without_the_library_there_is_a_reason(elsewhere, monkeypatch, name):
    monkeypatch.setattr(binding, "_find", lambda: str(elsewhere / name))
    assert binding.library() is None
    assert re.match(rf".*{name} cannot be loaded \(.*\); for the compiled ones, install GCC 12", binding.absence())
    monkeypatch.setattr(binding, "_find", lambda: None)
    assert "no compiler built it" in binding.absence()


@pytest.mark.parametrize("name", ["text.so", "nowhere.so", "libm.so.6"])
def test_a_library_by_name_that_cannot_be_loaded_is_an_error(elsewhere, monkeypatch, name):
    path = name if name.startswith("libm") else str(elsewhere / name)
    monkeypatch.setenv(binding.LIBRARY_VARIABLE, path)
    with pytest.raises(ValueError, match=f"LAMBDANETS_LIBRARY must be .*got '{path}': .* cannot be loaded .*unset it"):
        binding.absence()


def test_a_library_of_another_version_is_named(elsewhere, monkeypatch):
    monkeypatch.setattr(binding, "_VERSION", -1)
    monkeypatch.setattr(binding, "_find", lambda: LIBRARY.handle._name)
    assert "is of another version of lambdanets; for the compiled ones" in binding.absence()
    monkeypatch.setenv(binding.LIBRARY_VARIABLE, LIBRARY.handle._name)
    with pytest.raises(ValueError, match=r"LAMBDANETS_LIBRARY must be .* is of another version"):
        binding.absence()


def test_a_process_can_force_the_instruction_set():
    code = "from lambdanets.kernels.grid.compiled import binding; print(binding.library().name)"
    assert python(code, LAMBDANETS_SIMD="portable") == "portable"
    assert "LAMBDANETS_SIMD must be one of" in python(code, LAMBDANETS_SIMD="mmx")


def test_a_forked_process_needs_no_threads(threads):
    """Threads of the parent do not exist in a child: what waits for them waits for ever.

    PyTorch's own loops do, so that the child's only large operation is the kernel.
    """
    threads(2)
    given = inputs((14, 14), (27, 27), h=4, k=16, v=64)
    memory = Memory()
    expected = binding.forward(QUERY_FIRST, given.of_kernel, memory)
    memory.scratch = lambda like, *shape: memory.given[0]
    child = os.fork()
    if child == 0:
        signal.alarm(600)
        out = binding.forward(QUERY_FIRST, given.of_kernel, memory)
        os._exit(0 if out.numpy().tobytes() == expected.numpy().tobytes() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("size", [50, 97, 400])
def test_the_work_counts_the_transforms_that_run(size):
    """Scratch memory grows with the length of a transform, and with nothing else where the table alone changes.

    The depth of 64 makes one step of the length more than what the pieces of the memory are rounded up to.
    """

    def scratch(origin):
        of_sizes = binding._PROBLEM.pack(1, 1, 64, 1, 1, 1, size, 1, origin + 1, 0, origin)
        return LIBRARY.handle.lambdanets_scratch(LIBRARY.level, SPECTRAL, of_sizes, 1, False, False)

    lengths = [spectral.good_length(size + origin) for origin in range(size)]
    needed = [scratch(origin) for origin in range(size)]
    each = (needed[-1] - needed[0]) / (lengths[-1] - lengths[0])
    counted = [lengths[0] + (floats - needed[0]) / each for floats in needed]
    assert counted == pytest.approx(lengths, abs=0.5)


def test_the_work_counts_the_channels_of_whole_points(level):
    """Scratch memory grows with the number of channels where the counted ones do, and nowhere else."""

    def scratch(dim_value):
        of_sizes = binding._PROBLEM.pack(1, 1, 1, dim_value, 1, 1, 8, 1, 15, 0, 7)
        return LIBRARY.handle.lambdanets_scratch(dict(LIBRARY.levels)[level], SPECTRAL, of_sizes, 1, False, True)

    depths = range(1, 71)
    counted, needed = ([f(v) for v in depths] for f in (spectral.padded_channels, scratch))
    for values in (counted, needed):
        assert values == sorted(values)
    assert [v for v in depths[1:] if counted[v - 1] > counted[v - 2]] == [
        v for v in depths[1:] if needed[v - 1] > needed[v - 2]
    ]


class Examples(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return run("spectral", inputs((8, 8), (15, 15), seed=index))[0]


def test_processes_of_a_data_loader():
    loader = torch.utils.data.DataLoader(Examples(), batch_size=None, num_workers=2)
    for index, out in enumerate(loader):
        assert torch.equal(out, run("spectral", inputs((8, 8), (15, 15), seed=index))[0])


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_look_at_sizes_is_that_of_pytorchs_operations(data):
    """Every instruction set, any grid, strides, with and without a gradient; numbers of one size and others."""
    grid = tuple(data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=2)))
    if data.draw(st.booleans()):
        grid = (*grid[:-1], grid[-1] + 500)  # wider than what is read at once
    extents = tuple(2 * data.draw(st.integers(0, size)) + 1 for size in grid)
    b, h, k, v, u = (data.draw(st.integers(1, most)) for most in (2, 3, 3, 33, 2))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    n, spread_of_sizes = math.prod(grid), data.draw(st.sampled_from([1.0, 3.0, 10.0]))

    def numbers(*shape):
        tensor = torch.randn(shape) * torch.rand(shape).pow(spread_of_sizes)
        return tensor.transpose(2, 3).contiguous().transpose(2, 3) if data.draw(st.booleans()) else tensor

    query, value = numbers(b, h, n, k), numbers(b, u, n, v)
    grad = numbers(b, h, n, v) if data.draw(st.booleans()) else None
    if grad is not None and data.draw(st.booleans()):
        grad = grad[:, :1].expand(b, h, n, v)
    if data.draw(st.integers(0, 3)) == 0:
        which = data.draw(st.sampled_from([query, value]))
        which[-1, -1, data.draw(st.integers(0, n - 1)), -1] = data.draw(st.sampled_from([math.nan, math.inf, 0.0]))
    cut = GridInputs.of(query, value, torch.ones(u, k, *extents), grid, [extent // 2 for extent in extents])
    channels = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binding, "check", lambda problem: "left out")
        expected = spread.differ_in_size(cut.problem, query, value, cut.table, grad, channels=channels)
    for library in [dataclasses.replace(LIBRARY, name=name) for name in LEVELS]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(binding, "_load", functools.partial(lambda found: found, library))
            patch.setattr(binding, "SLOT_SIZES", 64)
            assert spread.differ_in_size(cut.problem, query, value, cut.table, grad, channels=channels) == expected

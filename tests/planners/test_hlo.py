"""What is read from the text of compiled programs: real ones, compiled here for eight forced CPU devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from planners.programs import replicas
from planners.programs.hlo import Collective, HloError, collectives, parts, size

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
TRIPS = 5


@functools.cache
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(jax.sharding.AxisType.Auto,) * 3)


def compiled(body: Callable[..., Any], into: P, out: P, shape: tuple[int, ...] = (16, 8)) -> str:
    """The program of `body` on a float32 array, mapped by hand so that it holds the collective that it says."""
    mapped = jax.shard_map(body, mesh=mesh(), in_specs=into, out_specs=out, check_vma=False)
    array = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh(), into))
    return jax.jit(mapped).lower(array).compile().as_text() or ""


def only(text: str) -> tuple[Collective, dict[str, int]]:
    (row,) = collectives(text)
    if row.kind == "collective-permute":
        return row, replicas.permuted(row.groups, MESH)
    return row, replicas.axes(replicas.groups(row.groups, 8), MESH)


@pytest.mark.parametrize("axes", [("tensor",), ("fsdp",), ("data",), ("data", "fsdp"), ("data", "tensor"), tuple(MESH)])
def test_all_reduce_names_its_axes(axes: tuple[str, ...]) -> None:
    row, crossed = only(compiled(lambda x: jax.lax.psum(x, axes), P(None, None), P(None, None)))
    assert (row.kind, row.dtype, row.size, row.times) == ("all-reduce", "f32", 16 * 8 * 4, 1)
    assert crossed == {axis: 2 for axis in MESH if axis in axes}


def test_all_gather_ends_with_the_whole() -> None:
    gather = lambda x: jax.lax.all_gather(x, "fsdp", tiled=True)
    row, crossed = only(compiled(gather, P("fsdp", None), P(None, None)))
    assert (row.kind, row.size, crossed) == ("all-gather", 16 * 8 * 4, {"fsdp": 2})


def test_reduce_scatter_starts_from_the_whole() -> None:
    scatter = lambda x: jax.lax.psum_scatter(x, ("data", "fsdp"), tiled=True)
    row, crossed = only(compiled(scatter, P(None, None), P(("data", "fsdp"), None)))
    assert (row.kind, row.size, crossed) == ("reduce-scatter", 16 * 8 * 4, {"data": 2, "fsdp": 2})


def test_all_to_all_and_permutation() -> None:
    swap = lambda x: jax.lax.all_to_all(x, "tensor", 1, 0, tiled=True)
    row, crossed = only(compiled(swap, P("tensor", None), P(None, "tensor")))
    assert (row.kind, row.size, crossed) == ("all-to-all", 8 * 8 * 4, {"tensor": 2})
    shift = lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])
    row, crossed = only(compiled(shift, P("data", None), P("data", None)))
    assert (row.kind, row.size, crossed) == ("collective-permute", 8 * 8 * 4, {"data": 2})


def test_loops_multiply_how_often_a_collective_runs() -> None:
    def nested(x: jax.Array) -> jax.Array:
        inner = lambda y, _: (jnp.tanh(jax.lax.psum(y, "tensor")), None)
        outer = lambda y, _: (jax.lax.psum(jax.lax.scan(inner, y, length=3)[0] * 2, "data"), None)
        return jax.lax.scan(outer, x, length=TRIPS)[0]

    rows = collectives(compiled(nested, P(None, None), P(None, None)))
    found = {tuple(replicas.axes(replicas.groups(r.groups, 8), MESH)): (r.times, r.counted) for r in rows}
    assert found == {("tensor",): (3 * TRIPS, True), ("data",): (TRIPS, True)}


def test_a_loop_of_unknown_length_is_said_to_be_so() -> None:
    def until(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 100, lambda y: jax.lax.psum(y, "data"), x)

    (row,) = collectives(compiled(until, P(None, None), P(None, None)))
    assert (row.times, row.counted) == (1, False)


def test_partitioned_matrix_product_is_summed_over_the_axis_that_was_contracted() -> None:
    """What XLA's partitioner puts in by itself, which prints groups in the mesh form."""
    sharding = lambda *spec: NamedSharding(mesh(), P(*spec))
    left = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=sharding("data", "tensor"))
    right = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=sharding("tensor", None))
    product = jax.jit(jnp.matmul, out_shardings=sharding("data", None))
    row, crossed = only(product.lower(left, right).compile().as_text() or "")
    assert (row.kind, row.size, crossed) == ("all-reduce", 16 * 16 * 4, {"tensor": 2})


FORMS = {
    "{{0,4},{1,5},{2,6},{3,7}}": {"data": 2},
    "[4,2]<=[2,4]T(1,0)": {"data": 2},
    "[4,2]<=[8]": {"tensor": 2},
    "[2,4]<=[4,2]T(1,0)": {"data": 2, "fsdp": 2},
    "mesh['axis_0'=4,'axis_1'=2] {'axis_0'}": {"data": 2, "fsdp": 2},
    "mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0'}": {"data": 2},
    "mesh['axis_0'=4,'axis_1'=2] {'axis_0':(2)2}": {"fsdp": 2},
    "mesh['axis_0'=4,'axis_1'=2] {'axis_0':(1)2,'axis_1'}": {"data": 2, "tensor": 2},
    "mesh[a=4,b=2] {b}": {"tensor": 2},
    "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}": {"tensor": 2},
    "mesh['a'=2,'b'=4], device_ids=(0,4,1,5,2,6,3,7) {'a'}": {"fsdp": 2},
    "{}": {"data": 2, "fsdp": 2, "tensor": 2},
}


@pytest.mark.parametrize("text", FORMS)
def test_every_form_of_replica_groups_is_read(text: str) -> None:
    if text.startswith("mesh['a'=2,'b'=4], device_ids=(0,4"):
        # Groups {0,2}, {4,6}, {1,3}, {5,7}: rows of 4 in the listed order.
        assert replicas.groups(text, 8).tolist() == [[0, 2], [4, 6], [1, 3], [5, 7]]
    assert replicas.axes(replicas.groups(text, 8), MESH) == FORMS[text]


def test_forms_of_the_same_groups_agree_with_numpy() -> None:
    wanted = np.arange(8).reshape(2, 2, 2).transpose(2, 0, 1).reshape(2, 4)
    assert np.array_equal(replicas.groups("[2,4]<=[2,2,2]T(2,0,1)", 8), wanted)


def test_groups_that_follow_no_axes_are_refused() -> None:
    with pytest.raises(HloError, match="follow no axes"):
        replicas.axes(replicas.groups("{{0,3},{1,2},{4,7},{5,6}}", 8), MESH)
    with pytest.raises(HloError, match="unequal size"):
        replicas.groups("{{0,1,2},{3}}", 8)


def test_shapes_are_taken_apart() -> None:
    shape = "((bf16[2,3]{1,0}, f32[]), /*index=2*/(bf16[4,3]{1,0:T(8,128)}, f32[5]{0}))"
    assert parts(shape) == ["(bf16[2,3]{1,0}, f32[])", "(bf16[4,3]{1,0:T(8,128)}, f32[5]{0})"]
    assert [size(part) for part in parts(shape)] == [16, 44]
    assert size("f8e4m3fn[10]{0}") == 10
    assert size("pred[7]{0}") == 7


def test_a_text_that_is_no_program_is_refused() -> None:
    with pytest.raises(HloError, match="no ENTRY computation"):
        collectives("HloModule nothing")

"""What travels is what is counted, and hardly more than what there is to say."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxlm.collectives.buckets import slices
from tests.collectives.test_safety import made
from tests.collectives.work import WIDTH, Toy, toy, toy_batch


@pytest.mark.parametrize(
    ("size", "unit", "most"), [(257, 1, 256), (1000, 8, 300), (4096, 1024, 1024), (5, 8, 1), (2050, 2, 2048)]
)
def test_slices_are_whole_blocks_and_cover_a_shard_with_less_than_a_block_each_to_spare(size, unit, most):
    count, step = slices(size, unit, most)
    assert step % unit == 0
    assert step <= max(most // unit, 1) * unit
    assert 0 <= count * step - size < count * unit


def exchanged(jaxpr: Any, times: int = 1) -> int:
    """Bytes of codes of at most 16 bits that a program's `all_to_all` take in, over all rounds of its loops."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "all_to_all":
            given = [each.aval for each in eqn.invars if each.aval.dtype.itemsize < 4]
            total += times * sum(each.size * each.dtype.itemsize for each in given)
        inner = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
        for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            part = getattr(part, "jaxpr", part)
            total += exchanged(part, inner) if hasattr(part, "eqns") else 0
    return total


@pytest.mark.parametrize("elements", [WIDTH * WIDTH, WIDTH * WIDTH - 512])
def test_the_bytes_that_are_counted_travel_and_are_those_of_the_weights(elements):
    """A row is 2,048 numbers; slices of at most 1,792 must not make it 3,584."""
    run = Toy(made("int8", bucket_mb=elements / 2**18), 2)
    with jax.set_mesh(run.mesh):
        program = jax.make_jaxpr(
            lambda state, batch: (
                run.sync.gradients(toy, state.model, batch, jax.random.key(0), state.sync, state.step).gradients
            )
        )(run.state, run.put(toy_batch(0)))
    workers, row = 2, WIDTH * WIDTH // 2
    codes, _ = run.sync.payload()
    # Of what an all_to_all takes in, a worker's own row stays; and there are two legs.
    assert codes == 2 * (workers - 1) * exchanged(program.jaxpr) // workers
    assert codes == 2 * (workers - 1) * (row + 2 * row // 256)


@pytest.mark.parametrize("kind", ["int4", "topk"])
def test_slices_say_what_the_whole_says(kind):
    more: dict[str, Any] = {"momentum": 0, "warmup": 0} if kind == "topk" else {}
    got = []
    for elements in (WIDTH * WIDTH, WIDTH * WIDTH // 2 + 1024):
        run = Toy(made(kind, limit=0, spike=0, bucket_mb=elements / 2**18, **more), 2)
        with jax.set_mesh(run.mesh):
            got.append(np.asarray(run.gradients(run.state, run.put(toy_batch(0)), jax.random.key(0))[0]["w"]))
    np.testing.assert_array_equal(*got)

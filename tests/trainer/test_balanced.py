"""The step with unequal shares: what it reports, how its clock reads, and what the balancer makes of it."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.balancing import Balancer
from jaxlm.collectives.sync import Implicit
from jaxlm.data.feed import Shared
from jaxlm.data.fingerprint import as_text, fingerprint
from jaxlm.sharding import make_mesh
from jaxlm.trainer.balanced import (
    BalancedStep,
    make_balanced_programs,
    seconds_shape,
    seconds_sharding,
    sums_sharding,
)
from jaxlm.trainer.loop import Finished, train
from jaxlm.trainer.metrics import Work, record_of
from jaxlm.trainer.state import init_state
from jaxlm.trainer.step import make_train_step
from planners.balance import Balance
from planners.layout import rules
from planners.machines.presets import mixture, nodes
from planners.plan import MESH_AXES, Batch, Plan, PlanError, Segment
from planners.space.sharing import shared
from planners.wishes import Search

TX = optax.sgd(0.1)
REPLICAS, ROWS, LENGTH = 4, 32, 8
WORK = Work(tokens=ROWS * LENGTH, flops_full=1, flops_causal=1, devices=4, peak=None, bytes_per_token=1)


def objective(model, batch, key):
    """A loss with noise in it, as dropout has."""
    noisy = model["w"] * (1.0 + 0.1 * jax.random.normal(key, (LENGTH,)))
    values = jnp.sum(jnp.square(noisy[None] - batch["targets"]), axis=1)
    return jnp.sum(values), {"weight": jnp.asarray(values.size, jnp.float32)}


class Rows:
    def fetch(self, index: int, start: int, stop: int, /) -> dict[str, np.ndarray]:
        rows = np.random.default_rng(index).integers(0, 9, (2, ROWS, LENGTH)).astype(np.int32)
        return {"tokens": rows[0, start:stop], "targets": rows[1, start:stop]}


def make_plan(accumulation: int = 8, data: int = REPLICAS, **batch) -> Plan:
    mesh = dict.fromkeys(MESH_AXES, 1) | {"data": data}
    cut = Batch(sequences=ROWS, microbatch=ROWS // accumulation, accumulation=accumulation, **batch)
    return Plan(mesh=mesh, rules=rules(mesh), batch=cut, remat=(Segment(layers=1),))


def compiled(mesh, state, batch, pace=None) -> BalancedStep:
    compute, finish = make_balanced_programs(objective, TX, seed=3)
    whole = NamedSharding(mesh, P())
    shapes = jax.eval_shape(compute, state.model, state.step, batch)
    places = sums_sharding(mesh, shapes, jax.tree.map(lambda _: whole, state.model))
    first = jax.jit(compute, out_shardings=places).lower(state.model, state.step, batch).compile()
    sums = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    seconds = jax.ShapeDtypeStruct(seconds_shape(mesh), jnp.float32, sharding=seconds_sharding(mesh))
    second = jax.jit(finish, out_shardings=whole).lower(state, sums, batch["shares"], seconds).compile()
    return BalancedStep(first, second, mesh, pace)


def run(shares, *, steps: int, report, pace=None):
    """Trains the toy on four replicas; `shares` is asked for each batch. Returns the final weights."""
    mesh = make_mesh(make_plan(), jax.devices()[:REPLICAS])
    with jax.set_mesh(mesh):
        feed = Shared(Rows(), mesh, 16, 1, shares, packed=True)
        state = jax.device_put(init_state({"w": jnp.zeros(LENGTH)}, TX, Implicit()), NamedSharding(mesh, P()))
        step = compiled(mesh, state, feed[0], pace)
        batches = feed.iterate(0, steps)
        outcome = train(state, step=step, batches=batches, start=0, steps=steps, tensors=["w"], report=report)
        step.close()
    return np.asarray(outcome.state.model["w"])


def test_any_shares_train_as_one_device_does_noise_and_hashes_included():
    plain, seen = [], []
    step = jax.jit(make_train_step(objective, TX, Implicit(), seed=3))
    state = init_state({"w": jnp.zeros(LENGTH)}, TX, Implicit())
    batches = ({name: rows[:, None] for name, rows in Rows().fetch(k, 0, ROWS).items()} for k in range(6))
    want = train(state, step=step, batches=batches, start=0, steps=6, tensors=["w"], report=plain.append)
    moving = iter(
        [(8, 8, 8, 8), (8, 8, 8, 8), (16, 7, 5, 4), (1, 2, 13, 16), (16, 14, 1, 1), (8, 8, 8, 8), (9, 9, 9, 5)]
    )
    got = run(lambda: next(moving), steps=6, report=seen.append)
    np.testing.assert_allclose(got, want.state.model["w"], rtol=1e-6)
    np.testing.assert_allclose([f.scalars["loss"] for f in seen], [f.scalars["loss"] for f in plain], rtol=1e-6)
    assert (
        [f.batch for f in seen]
        == [f.batch for f in plain]
        == [as_text(fingerprint(Rows().fetch(k, 0, ROWS))) for k in range(6)]
    )
    assert [f.vectors["shares"] for f in seen[1:4]] == [(16, 7, 5, 4), (1, 2, 13, 16), (16, 14, 1, 1)]


def test_a_replica_that_takes_twice_as_long_gets_half_the_work():
    balancer, said, records = Balancer(make_plan(balance=Balance()), LENGTH, say=lambda text: said.append(text)), [], []

    def pace(replica: int, microbatches: int, seconds: float) -> None:
        time.sleep(max(0.0, microbatches * (0.04 if replica == 2 else 0.02) - seconds))

    run(balancer.now, steps=12, report=lambda f: records.append(record_of(balancer.observe(f), 1.0, WORK)), pace=pace)
    last = records[-1]["shares"]
    assert records[0]["shares"] == [8, 8, 8, 8]
    assert sum(last) == ROWS
    assert abs(last[2] - ROWS / 7) <= 1.0, last
    assert min(last[0], last[1], last[3]) >= 8
    assert sum(records[-1]["alpha"]) == pytest.approx(1.0)
    each = np.array(records[-1]["replica_seconds"]) / last
    assert each[2] > 1.5 * each[[0, 1, 3]].max()
    assert " the replicas share the batch " in said[0]


def test_a_balancer_goes_on_from_a_checkpoint_with_as_many_replicas_and_with_fewer():
    plan = make_plan(balance=Balance(), shares=(3.0, 1.0, 2.0, 2.0))
    balancer = Balancer(plan, LENGTH)
    assert balancer.now() == (12, 4, 8, 8)
    vectors = {"shares": (12, 4, 8, 8), "replica_seconds": (12.0, 10.0, 8.0, 8.0)}
    for step in range(1, 4):
        balancer.observe(Finished(step, {}, 1.0, "", vectors))
    assert balancer.now() == (10, 4, 9, 9)
    again = Balancer(plan, LENGTH, balancer.to_json())
    assert (again.now(), again.shares) == (balancer.now(), balancer.shares)
    assert Balancer(make_plan(data=2, balance=Balance()), LENGTH, balancer.to_json()).now() == (7, 9)


@pytest.mark.parametrize("how", ["auto", "never"])
def test_replicas_share_evenly_on_one_node(how):
    plan, cluster = make_plan(), nodes("H100", 4)
    assert shared(plan, Search(balance=how), cluster, "bfloat16").batch.balance is None


def test_auto_balances_unequal_devices_where_there_is_something_to_move():
    unequal, search = mixture((("A100-40", 8), ("A100-80", 8))), Search(alpha=Balance(gamma=0.9))
    assert shared(make_plan(4, 8), search, unequal, "bfloat16").batch.balance == Balance(gamma=0.9)
    assert shared(make_plan(2, 8), search, unequal, "bfloat16").batch.balance is None
    assert shared(make_plan(4, 8), search, nodes("H100", 16), "bfloat16").batch.balance is None


def test_always_says_what_stands_in_the_way():
    with pytest.raises(PlanError, match=r"set plan\.mesh\.data to 2"):
        shared(make_plan(data=1), Search(balance="always"), nodes("H100", 4), "bfloat16")
    with pytest.raises(PlanError, match=r"set plan\.microbatch to at most 16, better 8"):
        shared(make_plan(1), Search(balance="always"), nodes("H100", 4), "bfloat16")
    with pytest.raises(PlanError, match=r"batch\.shares has 2 entries for 4 replicas"):
        make_plan(shares=(0.5, 0.5))

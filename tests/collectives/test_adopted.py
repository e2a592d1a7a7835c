"""A run that goes on under another scheme: what is taken over, what begins anew, and what is refused."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm import syncing
from jaxlm.collectives.adopt import adopted
from jaxlm.planned import beside
from jaxlm.trainer.loop import Finished
from jaxlm.tree import named_leaves
from jaxlm.watching import Fallback
from planners.findings import Prediction
from planners.machines.presets import local_cluster
from planners.plan import PlanError
from tests.collectives.test_local import Apart
from tests.collectives.test_safety import made, named
from tests.collectives.work import WIDTH, Toy, toy_batch


def toy(kind: str, *, steps: int = 100, **parameters: Any) -> Toy:
    return Toy(made(kind, **parameters), tx=optax.sgd(1e-3), decay=0.9, steps=steps)


def go_on(run: Toy, other: Toy, step: int) -> None:
    """`other` begins where `run` is after `step` steps."""
    saved = jax.tree.map(jnp.asarray, named(jax.device_get(run.state.sync)))
    with jax.set_mesh(other.mesh):
        state = adopted(other.sync, saved, step)
    other.state = dataclasses.replace(
        other.state, sync=state, step=jnp.asarray(step, run.state.step.dtype), model=jax.device_get(run.state.model)
    )


@pytest.mark.parametrize("kind", ["sign", "topk"])
def test_a_momentum_that_another_scheme_did_not_collect_is_refused_or_collected(kind):
    run, other = toy("int4"), toy(kind, warmup=6)
    run.train(0, 0, 3)
    go_on(run, other, 3)
    assert int(other.state.sync["warmup"]) == 6
    assert float(other.state.sync["loss"]) == 0.0
    assert [m["dense"] for m in other.train(0, 3, 8)] == [1, 1, 1, 0, 0]
    with pytest.raises(PlanError, match=f"{kind} sends the momentum.*has done 6 without it.*at least 12"):
        go_on(run, other, 6)


def test_a_fallback_goes_on_with_the_same_bounds_and_ends_with_others():
    run = toy("topk", momentum=0, warmup=0, limit=0, spike=1e-6)
    seen = run.train(0, 0, 3)
    assert [m["fallback"] for m in seen] == [0, 1, 1]
    same, scheme, limit, spike = (
        toy("topk", momentum=0, warmup=0, limit=0, spike=1e-6),
        toy("int4", limit=0, spike=1e-6),
        toy("topk", momentum=0, warmup=0, limit=5, spike=1e-6),
        toy("topk", momentum=0, warmup=0, limit=0, spike=2),
    )
    for other, stays in ((same, True), (scheme, False), (limit, False), (spike, False)):
        go_on(run, other, 3)
        assert bool(other.state.sync["fallback"]) == stays
        assert other.state.sync["bounds"].tolist() == other.first.sync["bounds"].tolist()


def test_dense_steps_are_reported_also_where_nothing_is_remembered():
    run = toy("topk", momentum=0, warmup=2, feedback=0, limit=0, spike=0)
    assert [m["dense"] for m in run.train(0, 0, 3)] == [1, 1, 0]


def test_under_one_bit_after_top_k_what_ever_had_a_gradient_moves_and_the_rest_stays():
    run, other = toy("topk", warmup=2, limit=0, spike=0), toy("sign", warmup=2, limit=0, spike=0)
    run.train(0, 0, 6, rare=3)
    go_on(run, other, 6)
    alive = np.asarray(other.state.sync["alive"]["w"])
    assert alive[3:].all()
    assert not alive[:3].any()
    other.train(0, 6, 7, rare=3)
    assert (np.asarray(other.state.sync["momentum"]["w"])[3:] != 0.0).all()
    # Of what was neither sent nor remembered nobody knows; everything moves then.
    forgetful = toy("topk", warmup=2, limit=0, spike=0, feedback=0)
    forgetful.train(0, 0, 6)
    go_on(forgetful, other, 6)
    assert np.asarray(other.state.sync["alive"]["w"]).all()


def test_a_ramp_is_as_long_as_when_the_run_began():
    run, other = toy("dgc", steps=100), toy("dgc", steps=1000)
    run.train(0, 0, 2)
    assert int(run.state.sync["ramp"]) == 10
    go_on(run, other, 12)
    with jax.set_mesh(other.mesh):
        got, _ = other.gradients(other.state, other.put(toy_batch(0, 12)), jax.random.key(0))
    assert (np.asarray(got["w"]) != 0).mean() < 0.03


def test_signs_without_feedback_train():
    run = toy("sign", warmup=2, feedback=0, limit=0, spike=0)
    run.train(0, 0, 4)
    assert (np.asarray(run.state.sync["momentum"]["w"]) != 0.0).all()


def test_a_warm_up_that_is_asked_for_has_a_step():
    assert [made("sign").warm_steps(steps) for steps in (1, 2, 100)] == [1, 1, 20]
    assert [made("sign", warmup=0).warm_steps(1), made("sign", warmup=7).warm_steps(1)] == [0, 7]


def test_a_fallback_is_said_once(capsys):
    watch = Fallback(print)
    for step, fallen in enumerate((0.0, 1.0, 1.0), start=1):
        watch(Finished(step, {"loss": 2.0, "fallback": fallen, "residual_ratio": 7.0}, 0.1))
    Fallback(print, known=True)(Finished(4, {"loss": 2.0, "fallback": 1.0}, 0.1))
    said = capsys.readouterr().out
    assert said.count("gradients travel dense from here on") == 1
    assert said.startswith("step 2: ")
    assert "7 times the gradient's norm was owed" in said


def resumed(sync: Any, model: Any, saved: dict[str, Any]) -> tuple[Any, str | None]:
    """What a session makes of a checkpoint that holds this."""
    held = {f"sync/{name}": jnp.asarray(value) for name, value in saved.items()}
    names = {name: (value.shape, value.dtype) for name, value in held.items()}
    read = {name: held[name] for name in syncing.readable(sync, names, model)}
    with jax.set_mesh(sync.mesh):
        return syncing.restored(sync, names, read, 3, model)


def test_what_is_dropped_and_what_is_shared_is_said():
    run = toy("int4")
    run.train(0, 0, 3)
    saved = named(jax.device_get(run.state.sync))
    assert resumed(run.sync, run.model, saved)[1] is None
    other = toy("int8")
    assert "what workers still owed from compressed steps is dropped" in (
        resumed(other.sync, other.model, saved)[1] or ""
    )
    more = Toy(made("int4"), 4)
    uncut = saved | {"error/gain": np.ones((2, WIDTH), np.float32)}
    _, said = resumed(more.sync, more.model, uncut)
    assert said is not None
    assert "owed to gain is dropped: it is cut or sent in another way now" in said
    assert "residuals of 2 workers are shared by 4, their mean as it was" in said


def test_a_fallback_is_said_on_resume_and_so_is_its_end():
    run, other = toy("int4", limit=0, spike=1e-6), toy("int4", limit=0, spike=2)
    run.train(0, 0, 3)
    saved = named(jax.device_get(run.state.sync))
    state, said = resumed(run.sync, run.model, saved)
    assert syncing.fallen_back(state)
    assert "has fallen back to dense gradients, and stays there" in (said or "")
    state, said = resumed(other.sync, other.model, saved)
    assert not syncing.fallen_back(state)
    assert "under another scheme, limit or spike it tries again" in (said or "")


def test_local_steps_say_that_they_forget_and_refuse_to_owe_what_is_not_there():
    few, whole = Apart(2, bits=4.0), Apart(2, bits=32.0)
    model = {"w": jnp.zeros((WIDTH, WIDTH)), "gain": jnp.ones((WIDTH,))}
    saved = named_leaves(jax.device_get(few.state.sync))
    assert "what workers still owed from compressed steps is dropped" in (resumed(whole.local, model, saved)[1] or "")
    saved = named_leaves(jax.device_get(whole.state.sync))
    with pytest.raises(PlanError, match="holds no sync/error/w: its exchanges lost too little to remember") as refused:
        resumed(few.local, model, saved)
    assert "began without local steps" not in str(refused.value)


@pytest.mark.parametrize("local", [1, 2])
def test_the_bytes_of_an_exchange_are_those_that_a_device_holds_and_too_many_are_warned_of(local):
    run, device = Toy(made("topk"), 2, local, decay=0.9), jax.devices()[0]
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), run.state.sync)
    held = sum(
        s.data.nbytes for x in jax.tree.leaves(run.state.sync) for s in x.addressable_shards if s.device == device
    )
    extra = syncing.held_bytes(run.sync, like)
    assert extra == held > 4 * WIDTH * WIDTH // local
    cluster = local_cluster("cpu", 4, 1000 * extra, 1, 1)
    plan = dataclasses.replace(
        run.plan, predicted=Prediction(seconds={"compute": 1.0}, memory={"weights": 499.0 * extra})
    )
    assert beside(plan, cluster, extra, 0.5).startswith(f"the exchange of gradients keeps {extra:,} bytes per device")
    assert beside(plan, cluster, extra, 0.499).startswith("warning: the exchange of gradients keeps")


def test_the_momentum_of_a_weight_that_is_cut_now_and_was_not_goes_on():
    run = toy("topk", warmup=2, limit=0, spike=0)
    run.train(0, 0, 4)
    saved = named(jax.device_get(run.state.sync))
    other = {"momentum/w": "small/w", "small/gain": "momentum/gain"}
    apart = {other.get(name, name): value for name, value in saved.items() if not name.startswith(("error/", "owner/"))}
    state, _ = resumed(run.sync, run.model, apart)
    np.testing.assert_array_equal(state["momentum"]["w"], saved["momentum/w"])
    np.testing.assert_array_equal(state["small"]["gain"], saved["small/gain"])

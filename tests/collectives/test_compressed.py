"""The language model's gradients over a compressed axis: exact where nothing is lost, close where little is, and what
is lost is remembered."""

import numpy as np
import pytest

from jaxlm.collectives.schemes import Scheme, scheme
from planners.plan import Communication
from planners.programs import hlo, replicas
from tests.collectives.work import language_gradients
from tests.laws.work import GPT2, LLAMA, assert_same, make_plan, packed_batch, reference, step_text

MESH = {"zone": 2, "data": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("config", "mesh", "accumulation"),
    [
        (LLAMA, {"zone": 2, "data": 2, "tensor": 2}, 2),
        pytest.param(LLAMA, {"zone": 2, "fsdp": 2, "tensor": 2}, 1, marks=pytest.mark.slow),
        pytest.param(GPT2, {"zone": 4, "fsdp": 2}, 1, marks=pytest.mark.slow),
    ],
)
def test_the_float32_oracle_equals_one_device(config, mesh, accumulation):
    loss, grads, _, _ = language_gradients(
        mesh, config, Scheme(axis="zone", kind="exact"), packed_batch(), accumulation=accumulation
    )
    assert_same((loss, grads), reference(config))


@pytest.mark.slow
def test_any_replica_axis_can_be_the_slow_one():
    loss, grads, _, _ = language_gradients(
        {"zone": 2, "data": 2, "fsdp": 2}, LLAMA, Scheme(axis="data", kind="exact"), packed_batch()
    )
    assert_same((loss, grads), reference(LLAMA))


ERRORS = {"bf16": 0.01, "int8": 0.02, "fp8": 0.07, "int8_shared": 0.04, "int4": 0.4}


def relative(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    squares = lambda a: sum(float(np.square(x).sum()) for x in a.values())
    return (squares({k: got[k] - want[k] for k in want}) / squares(want)) ** 0.5


QUICK, REST = ("int8_shared", "sign"), ("bf16", "int8", "fp8", "int4", "topk", "powersgd", "dgc")


@pytest.mark.parametrize("kind", [*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in REST)])
def test_what_did_not_arrive_is_remembered_and_only_codes_cross(kind):
    """The mean over workers of the residuals, and what owners owe, make up the difference to the exact gradient."""
    parameters = {"int8": {"feedback": 1.0}, "fp8": {"feedback": 1.0}, "int8_shared": {"feedback": 1.0}}.get(kind, {})
    if kind in ("sign", "topk"):
        parameters = {"momentum": 0.0}
    if kind != "bf16":
        parameters |= {"warmup": 0.0} if kind in ("sign", "topk", "powersgd") else {}
    made = scheme(Communication(axis="zone", scheme=kind, parameters=parameters), 2)  # pyright: ignore[reportArgumentType]
    loss, grads, state, text = language_gradients(MESH, LLAMA, made, packed_batch(), step=50, decay=0.9)
    want_loss, want = reference(LLAMA)
    assert loss == pytest.approx(want_loss, rel=1e-6)
    if kind in ERRORS:
        assert relative(grads, want) < ERRORS[kind]
    if made.feedback:
        for name in grads:
            owed = state.get(f"error/{name}", np.zeros((2, 1))).mean(0) + state.get(f"owner/{name}", 0.0)
            error = np.linalg.norm(grads[name] + owed - want[name]) / np.linalg.norm(want[name])
            assert error < 1e-5, (name, error)
    crossing = across(text, MESH)
    assert {"u8", "u16"} & set(crossing)
    assert set(crossing) <= {"u8", "u16", "u32"}, crossing


def test_floats_that_cross_are_seen():
    assert "f32" in across(step_text(make_plan(MESH, LLAMA), LLAMA, packed_batch()), MESH)


def across(text: str, mesh: dict[str, int]) -> dict[str, float]:
    """Bytes on one device that collectives of an optimised program move over the zone axis, by type."""
    found: dict[str, float] = {}
    for each in hlo.collectives(text):
        if "zone" in replicas.axes(replicas.groups(each.groups, 8), mesh):
            found[each.dtype] = found.get(each.dtype, 0.0) + each.size
    return found

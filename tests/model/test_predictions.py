"""What a model would say, counted: the same numbers on any mesh and in any number of pieces."""

from collections import Counter
from functools import cache

import jax
import numpy as np
import pytest

from jaxlm.model import predictions
from jaxlm.model.latency import LEAST, latency
from jaxlm.model.loss import next_token
from jaxlm.model.predictions import judged
from jaxlm.model.transformer import Execution, Transformer
from jaxlm.sharding import Rules, batch_sharding, make_mesh, shardings
from jaxlm.tree import from_named
from planners.plan import Plan
from tests.laws.work import GPT2, LENGTH, LLAMA, make_plan, packed_batch, weights

BATCH = packed_batch()


def placed(plan: Plan, config, values):
    """A model with these weights on the current mesh, laid out as the plan says."""
    execution = Execution(
        shard=Rules(plan.rules.activations, rest=plan.rules.parameters), loss_chunks=plan.compile.loss_chunks
    )
    like = jax.eval_shape(lambda: Transformer(config, execution, key=jax.random.key(0)))
    return jax.device_put(from_named(like, values), shardings(like, jax.sharding.get_mesh(), plan.rules.parameters))


def counted(plan: Plan) -> dict[str, np.ndarray]:
    with jax.set_mesh(make_mesh(plan, jax.devices()[: plan.devices])):
        model = placed(plan, LLAMA, weights(LLAMA))
        batch = {k: jax.device_put(v, batch_sharding(jax.sharding.get_mesh(), dims=2)) for k, v in BATCH.items()}
        return jax.device_get(jax.jit(judged)(model, batch))


@cache
def by_hand() -> tuple[dict[str, list[int]], float]:
    """Counts by a loop over tokens, from the whole logits; and the nll of `next_token`."""
    like = jax.eval_shape(lambda: Transformer(LLAMA, Execution(), key=jax.random.key(0)))

    def whole(model, batch):
        x = model(batch["tokens"], batch["positions"], batch["segments"])
        return model.logits(x), next_token(model, batch)[1]["nll"]

    logits, nll = jax.jit(whole)(from_named(like, weights(LLAMA)), BATCH)
    guesses = np.asarray(logits)[:, :, : LLAMA.vocab].argmax(-1)
    counts = {name: Counter() for name in ("hits", "guesses", "targets")}
    for guess, target, weight in zip(guesses.flat, BATCH["targets"].flat, BATCH["weights"].flat, strict=True):
        if weight:
            counts["guesses"][int(guess)] += 1
            counts["targets"][int(target)] += 1
            counts["hits"][int(target)] += int(guess == target)
    return {name: [count[i] for i in range(LLAMA.padded_vocab)] for name, count in counts.items()}, float(nll)


@pytest.mark.parametrize(
    "plan",
    [make_plan({}, LLAMA), make_plan({"data": 2, "tensor": 2}, LLAMA, chunks=4)],
    ids=["one_device", "split_vocabulary_in_four_pieces"],
)
def test_counts_equal_those_of_a_loop_over_tokens(plan):
    found = counted(plan)
    want, nll = by_hand()
    for name, counts in want.items():
        assert found[name].tolist() == counts, name
    assert sum(want["hits"]) > 0, "some prediction must be right for this to mean much"
    assert found["weight"] == BATCH["weights"].sum() == found["guesses"].sum()
    assert float(found["nll"]) == pytest.approx(nll, rel=1e-6)


def test_the_padding_of_the_vocabulary_is_never_predicted_and_no_more_than_so_many_logits_are_held(monkeypatch):
    """Weights under which a padded row would win everywhere, if it were let."""
    values = dict(weights(LLAMA))
    values["table"] = values["table"].copy()
    values["table"][LLAMA.vocab :] = 100 * np.sign(values["table"][LLAMA.vocab :])
    monkeypatch.setattr(predictions, "LOGITS", BATCH["tokens"].size * LLAMA.padded_vocab // 3)
    plan = make_plan({}, LLAMA)
    with jax.set_mesh(make_mesh(plan, jax.devices()[:1])):
        model = placed(plan, LLAMA, values)
        compiled = jax.jit(judged).lower(model, BATCH).compile()
        found = compiled(model, BATCH)
    assert found["guesses"][LLAMA.vocab :].sum() == 0
    assert found["guesses"].sum() == BATCH["weights"].sum()
    rows, length = BATCH["tokens"].shape
    text = compiled.as_text() or ""
    assert f"[{rows},{length},{LLAMA.padded_vocab}]" not in text
    assert f"[{rows},{length // 4},{LLAMA.padded_vocab}]" in text, "three pieces do not divide the length, four do"


def test_latency_times_one_sequence_of_what_the_model_can_hold_on_all_devices():
    plan = make_plan({"fsdp": 8}, GPT2)
    ticks = iter(range(1000))
    with jax.set_mesh(make_mesh(plan)):
        found = latency(placed(plan, GPT2, weights(GPT2)), clock=lambda: float(next(ticks)))
    assert (found.p50, found.p95) == (1.0, 1.0)
    assert (found.tokens, found.calls) == (LENGTH, LEAST)
    assert found.facts()["latency_p95_ms"] == 1000.0

"""Who computes which microbatch changes neither loss nor gradient, and nothing is compiled again for it."""

import jax
import numpy as np
import pytest

from jaxlm.data.feed import Shared
from jaxlm.data.fingerprint import as_text, fingerprint
from jaxlm.model.loss import next_token
from jaxlm.model.transformer import Execution, Transformer
from jaxlm.sharding import Rules, make_mesh, shardings
from jaxlm.trainer.balanced import add_up, local_sums, sums_sharding
from jaxlm.tree import from_named, named_leaves
from tests.laws.work import LLAMA, SEQUENCES, assert_same, make_plan, packed_batch, reference, weights


class Rows:
    """Every step holds the same batch."""

    def fetch(self, index: int, start: int, stop: int, /) -> dict[str, np.ndarray]:
        return {name: value[start:stop] for name, value in packed_batch().items()}


class Uneven:
    """Loss and gradients of a plan whose replicas share the microbatches of `sequences` rows as they are told."""

    def __init__(self, mesh: dict[str, int], sequences: int):
        self.plan = make_plan(mesh, LLAMA)
        self.mesh = make_mesh(self.plan, jax.devices()[: self.plan.devices])
        self.shares: tuple[int, ...] = ()
        total = SEQUENCES // sequences
        slots = total - self.plan.groups + 1
        self.feed = Shared(Rows(), self.mesh, slots, sequences, lambda: self.shares, packed=True)
        execution = Execution(shard=Rules(self.plan.rules.activations, rest=self.plan.rules.parameters))
        like = jax.eval_shape(lambda: Transformer(LLAMA, execution, key=jax.random.key(0)))
        places = shardings(like, self.mesh, self.plan.rules.parameters)
        self.model = jax.device_put(from_named(like, weights(LLAMA)), places)
        compute = lambda model, batch: local_sums(next_token, model, batch, jax.random.key(7))
        with jax.set_mesh(self.mesh):
            first = self.feed.cut(0, (total - self.plan.groups + 1,) + (1,) * (self.plan.groups - 1))
            shapes = jax.eval_shape(compute, self.model, first)
            self.compute = jax.jit(compute, out_shardings=sums_sharding(self.mesh, shapes, places))
            self.add_up = jax.jit(add_up)

    def __call__(self, *shares: int) -> tuple[float, dict[str, np.ndarray]]:
        self.shares = shares
        with jax.set_mesh(self.mesh):
            sums, gradients, lanes = self.add_up(self.compute(self.model, self.feed[0]))
        assert as_text(lanes) == as_text(fingerprint(packed_batch())), "every row is computed, and once"
        named = {name: np.asarray(leaf) for name, leaf in named_leaves(gradients).items()}
        return float(sums["loss"] / sums["weight"]), named

    def text(self) -> str:
        with jax.set_mesh(self.mesh):
            return self.compute.lower(self.model, self.feed[0]).compile().as_text() or ""


@pytest.fixture(scope="module")
def four() -> Uneven:
    return Uneven({"data": 4}, 1)


@pytest.mark.parametrize("shares", [(4, 4, 4, 4), (7, 5, 3, 1), (1, 1, 1, 13)], ids=str)
def test_loss_and_gradients_of_unequal_shares_equal_one_device(four, shares):
    assert_same(four(*shares), reference(LLAMA))


def test_shares_move_without_compiling_anything_again(four):
    for shares in [(4, 4, 4, 4), (6, 4, 3, 3), (1, 13, 1, 1)]:
        four(*shares)
    assert four.compute._cache_size() == four.add_up._cache_size() == 1


def test_replicas_do_not_meet_while_they_compute(four):
    four(4, 4, 4, 4)
    text = four.text()
    assert "while(" in text
    assert not [word for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all") if word in text]


def test_a_replica_may_itself_be_split_over_fsdp_and_tensor():
    assert_same(Uneven({"data": 2, "fsdp": 2, "tensor": 2}, 2)(6, 2), reference(LLAMA))


def test_shares_that_do_not_fit_their_slots_are_refused(four):
    with pytest.raises(ValueError, match=r"\(14, 1, 1, 0\) do not fit 13 microbatches per replica"):
        four.feed.cut(0, (14, 1, 1, 0))

"""A bag of words and pairs beside an encoder, straight to the logits: the wide part of wide and deep learning
(Cheng et al. 2016, https://arxiv.org/abs/1606.07792).

It is fitted to the training rows before the first step (jaxlm/data/labelled/bag.py) and then stays as it is, so that
the two parts are right and wrong by themselves and their mean is better than either.

Axes: B batch, T position, V vocabulary, H buckets of pairs, C classes.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxlm.data.labelled.bag import bucket
from jaxlm.model.param import constant


class Wide(nnx.Module):
    """The logits that the words of a text and its pairs of neighbours add up to, each counted once; zero until fitted.
    No gradient reaches it."""

    def __init__(self, vocab: int, buckets: int, classes: int):
        # Biases by name: they do not decay. Their rows are split over no device, small as they are.
        self.word_bias = constant(0.0, (vocab, classes), ("words", "classes"))
        self.pair_bias = constant(0.0, (buckets, classes), ("buckets", "classes"))
        self.bias = constant(0.0, (classes,), ("classes",))

    def __call__(self, tokens_BT: Int[Array, "B T"], segments_BT: Int[Array, "B T"]) -> Float[Array, "B C"]:
        """float32; positions of segment 0 say nothing, nor does a pair with one of them."""
        return jnp.sum(self.by_word(tokens_BT, segments_BT), axis=1) + jax.lax.stop_gradient(self.bias[...])[None, :]

    def by_word(self, tokens_BT: Int[Array, "B T"], segments_BT: Int[Array, "B T"]) -> Float[Array, "B T C"]:
        """What each position adds: the weight of its word, and half of each pair that it is in."""
        with jax.named_scope("wide"):
            words_VC, pairs_HC = (jax.lax.stop_gradient(w[...]) for w in (self.word_bias, self.pair_bias))
            real_BT, ids_BT = segments_BT > 0, tokens_BT.astype(jnp.uint32)
            found_BTC = jnp.where(_first(tokens_BT, real_BT)[..., None], words_VC[tokens_BT], 0.0)
            pair_BT = bucket(ids_BT[:, :-1], ids_BT[:, 1:], pairs_HC.shape[0]).astype(jnp.int32)
            counted_BT = _first(pair_BT, real_BT[:, :-1] & real_BT[:, 1:])
            half_BTC = jnp.where(counted_BT[..., None], pairs_HC[pair_BT], 0.0) / 2
            return found_BTC.at[:, :-1].add(half_BTC).at[:, 1:].add(half_BTC)


def _first(ids_BT: Int[Array, "B T"], real_BT: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
    """Whether a position is the first real one of its row with its id."""
    earlier_TT = jnp.tril(jnp.ones((ids_BT.shape[1],) * 2, bool), -1)
    same_BTT = (ids_BT[:, :, None] == ids_BT[:, None, :]) & real_BT[:, None, :] & earlier_TT[None]
    return real_BT & ~jnp.any(same_BTT, axis=-1)

"""The model computes what the papers say, counted and checked by hand-written numpy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.model.attention import choose_kernel, require_kernel
from jaxlm.model.config import PRESETS, ModelConfig, preset
from jaxlm.model.describe import describe
from jaxlm.model.generate import Sampling, draw, empty_cache, extend, generate, plain
from jaxlm.model.loss import next_token
from jaxlm.model.ops import pick
from jaxlm.model.transformer import Execution, Transformer
from jaxlm.sharding import Rules, make_mesh, shardings
from jaxlm.tree import from_named, named_axes, named_leaves
from planners.layout import rules
from planners.plan import MESH_AXES, Batch, Plan, Segment

SMALL = ModelConfig(layers=2, embed=16, heads=4, kv_heads=2, mlp=24, vocab=50, vocab_multiple=16)
OLD = dataclasses.replace(
    SMALL, norm="layer", position="learned", positions=24, activation="gelu", bias=True, kv_heads=0, tied=False
)


def make(config: ModelConfig, seed: int = 0, **execution) -> Transformer:
    model = Transformer(config, Execution(**execution), key=jax.random.key(seed))
    noisy = {
        name: leaf + 0.1 * jax.random.normal(jax.random.key(i), leaf.shape)
        for i, (name, leaf) in enumerate(named_leaves(model).items())
    }
    return from_named(model, noisy)  # no gain is 1 and no bias 0, so that each matters


# https://huggingface.co/docs/transformers/model_doc (num_parameters of each published checkpoint)
PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1558m": 1_557_611_200,
    "llama-1b": 1_235_814_400,
    "llama-7b": 6_738_415_616,
    "llama-8b": 8_030_261_248,
    "llama-13b": 13_015_864_320,
    "llama-70b": 68_976_648_192,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    config = dataclasses.replace(preset(name), vocab_multiple=1)
    model = jax.eval_shape(lambda key: Transformer(config, Execution(), key=key), jax.random.key(0))
    assert sum(leaf.size for leaf in named_leaves(model).values()) == PUBLISHED[name]


def test_every_preset_is_published_or_ours():
    assert set(PRESETS) == {*PUBLISHED, "nano"}


def numpy_logits(config: ModelConfig, w: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """One document, [T] -> [T, vocab], float64, loops instead of einsums where it stays readable."""
    w = {name: np.asarray(value, np.float64) for name, value in w.items()}
    length, half = len(tokens), config.per_head // 2

    def norm(x, name):
        if config.norm == "rms":
            return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps) * w[f"{name}/gain"]
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt(centred.var(-1, keepdims=True) + config.norm_eps) * w[f"{name}/gain"] + w[f"{name}/bias"]
        )

    def rotated(x):  # [T, heads, head_dim]
        angle = np.arange(length)[:, None] * config.rope_theta ** (-np.arange(half) / half)
        turn = np.exp(1j * angle)[:, None]
        z = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([z.real, z.imag], -1)

    x = w["table"][tokens]
    if config.position == "learned":
        x = x + w["places"][:length]
    for i in range(config.layers):
        layer = {name.removeprefix("blocks/"): value[i] for name, value in w.items() if name.startswith("blocks/")}
        w |= {
            f"{kind}/{part}": layer[f"{kind}/{part}"]
            for kind in ("attn_norm", "mlp_norm")
            for part in ("gain", "bias")
            if f"{kind}/{part}" in layer
        }
        h = norm(x, "attn_norm")
        q, k, v = (np.tensordot(h, layer[f"attn/{n}"], 1) + layer.get(f"attn/{n}_bias", 0) for n in "qkv")
        if config.position == "rope":
            q, k = rotated(q), rotated(k)
        out = np.zeros((length, config.heads, config.per_head))
        for head in range(config.heads):
            group = head // (config.heads // config.groups)
            for t in range(length):
                scores = k[: t + 1, group] @ q[t, head] / np.sqrt(config.per_head)
                p = np.exp(scores - scores.max())
                out[t, head] = (p / p.sum()) @ v[: t + 1, group]
        x = x + np.tensordot(out, layer["attn/o"], 2) + layer.get("attn/o_bias", 0)
        h = norm(x, "mlp_norm")
        up = h @ layer["mlp/up"] + layer.get("mlp/up_bias", 0)
        if config.activation == "swiglu":
            gate = h @ layer["mlp/gate"]
            hidden = gate / (1 + np.exp(-gate)) * up
        else:
            hidden = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + hidden @ layer["mlp/down"] + layer.get("mlp/down_bias", 0)
    x = norm(x, "norm")
    head = w["table"].T if config.tied else w["head"]
    return (x @ head)[:, : config.vocab]


@pytest.mark.parametrize("config", [SMALL, OLD], ids=["llama", "gpt2"])
def test_logits_equal_a_numpy_transformer(config):
    model = make(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab, 12).astype(np.int32)
    got = model.logits(model(jnp.asarray(tokens[None]), jnp.arange(12)[None]))[0]
    want = numpy_logits(config, named_leaves(model), tokens)
    np.testing.assert_allclose(got[:, : config.vocab], want, rtol=2e-4, atol=2e-4)
    assert np.all(np.asarray(jax.nn.softmax(got))[:, config.vocab :] == 0.0), "padding never holds probability"


@pytest.mark.parametrize("config", [SMALL, OLD], ids=["llama", "gpt2"])
def test_cached_generation_equals_the_full_forward_pass(config):
    model = make(config)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, config.vocab, (1, 12)), jnp.int32)
    want = model.logits(model(tokens, jnp.arange(12)[None]))[0]
    at = lambda n: jnp.asarray(n, jnp.int32)
    padded = jnp.concatenate([tokens[:, :5], jnp.zeros((1, 3), jnp.int32)], axis=1)
    logits, cache = extend(model, padded, empty_cache(model, 1, 16), at(0), at(4))
    np.testing.assert_allclose(logits[0], want[4], rtol=1e-4, atol=1e-4)
    for position in range(5, 12):
        logits, cache = extend(model, tokens[:, position : position + 1], cache, at(position), at(0))
        np.testing.assert_allclose(logits[0], want[position], rtol=1e-4, atol=1e-4)


def test_generation_constrains_nothing_whatever_devices_hold_the_weights():
    """One row cannot be split over the devices, as training splits its batch."""
    mesh = dict.fromkeys(MESH_AXES, 1) | {"fsdp": 4, "tensor": 2}
    batch = Batch(sequences=8, microbatch=8, accumulation=1)
    plan = Plan(mesh=mesh, rules=rules(mesh), batch=batch, remat=(Segment(layers=2),))
    how: Any = dict(tokens=6, sampling=Sampling(temperature=0.0))

    def program(model: Transformer) -> str:
        token, at = jnp.ones((1, 1), jnp.int32), jnp.asarray(0, jnp.int32)
        return str(jax.make_jaxpr(extend)(model, token, empty_cache(model, 1, 4), at, at))

    want = list(generate(make(SMALL), [1, 2, 3], **how))
    with jax.set_mesh(make_mesh(plan)):
        model = make(SMALL, shard=Rules(plan.rules.activations))
        model = jax.device_put(model, shardings(model, jax.sharding.get_mesh(), plan.rules.parameters))
        assert list(generate(model, [1, 2, 3], **how)) == want
        assert "sharding_constraint" in program(model)
        assert "sharding_constraint" not in program(plain(model))


def test_generation_is_repeatable_greedy_at_temperature_zero_and_ends_where_told():
    model = make(SMALL)
    run = lambda **how: list(generate(model, [1, 2, 3], tokens=8, sampling=Sampling(**how), seed=5))
    assert run() == run()
    greedy = run(temperature=0.0)
    assert greedy == run(temperature=0.7, top_k=1) == run(temperature=0.7, top_p=1e-6)
    end = greedy[3]
    cut = list(generate(model, [1, 2, 3], tokens=8, sampling=Sampling(temperature=0.0), end=end))
    assert cut == greedy[: greedy.index(end)]


def test_top_k_and_top_p_keep_only_the_most_likely_tokens():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    drawn = lambda **how: {int(draw(logits, jax.random.key(i), Sampling(temperature=1.0, **how))[0]) for i in range(80)}
    assert drawn(top_p=1.0) == {0, 1, 2, 3}
    assert drawn(top_k=2, top_p=1.0) == {0, 1}
    assert drawn(top_p=0.79) == {0, 1}
    assert drawn(top_p=0.81) == {0, 1, 2}


def test_a_prompt_longer_than_learned_positions_is_refused():
    with pytest.raises(ValueError, match=r"20 tokens.*10 new tokens exceed the model's 24 positions"):
        next(generate(make(OLD), [1] * 20, tokens=10, sampling=Sampling()))


def test_dropout_changes_with_the_key_and_is_off_without_one():
    model = make(dataclasses.replace(SMALL, dropout=0.3))
    batch = {name: jnp.ones((2, 8), jnp.int32) for name in ("tokens", "targets", "positions")}
    batch["weights"] = jnp.ones((2, 8), jnp.float32)
    loss = lambda key: float(next_token(model, batch, key)[0])
    assert loss(jax.random.key(0)) == loss(jax.random.key(0)) != loss(jax.random.key(1))
    assert loss(None) == float(next_token(make(SMALL), batch, None)[0])


def test_pick_is_take_along_axis():
    logits = jax.random.normal(jax.random.key(0), (3, 4, 9))
    labels = jax.random.randint(jax.random.key(1), (3, 4), 0, 9)
    np.testing.assert_array_equal(pick(logits, labels), jnp.take_along_axis(logits, labels[..., None], -1)[..., 0])


def test_the_model_describes_itself():
    work = describe(SMALL, optax.adam(1e-3), batch=4, sequence=12, kernel="xla", dtype="float32", packed=True)
    assert work.parameter_count == sum(leaf.size for leaf in named_leaves(make(SMALL)).values())
    assert {t.name.split("/")[1] for t in work.optimizer} == {"mu", "nu"}
    assert sum(t.size for t in work.optimizer) == 2 * work.parameter_count
    per_layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24
    assert work.block_flops == 2 * 2 * per_layer
    assert work.head_flops == 2 * 16 * 64
    assert work.attention_flops == 2 * 4 * 16 * 12
    names = {t.name: t for t in work.activations}
    assert names["q"].axes == ("batch", "length", "heads", None)
    assert names["mlp_up"].shape == (1, 12, 24)
    kept = lambda work: [t for t in work.activations if t.shape.count(12) > 1]
    assert not kept(work), "our attention does not keep the scores"
    assert [t.shape.count(12) for t in work.scratch] == [2, 2, 2], "but has those of one block at a time"
    low = describe(SMALL, optax.adam(1e-3), batch=4, sequence=12, kernel="xla", dtype="bfloat16", packed=False)
    assert kept(low), "that of JAX does"
    fused = describe(SMALL, optax.adam(1e-3), batch=4, sequence=12, kernel="cudnn", dtype="bfloat16", packed=False)
    assert not kept(fused), "the fused kernel does not"


def test_every_weight_declares_its_axes_and_has_one_name():
    axes = named_axes(make(OLD))
    assert axes["blocks/attn/q"] == ("layers", "embed", "heads", "head_dim")
    assert axes["table"] == ("vocab", "embed")
    assert all(None not in a for a in axes.values())


def test_no_kernel_is_replaced_silently():
    gpu = dataclasses.replace(SMALL, head_dim=64)
    assert choose_kernel(gpu, "gpu", "bfloat16") == "cudnn"
    assert choose_kernel(gpu, "cpu", "float32") == "xla"
    with pytest.raises(ValueError, match=r"needs bfloat16.*model.attention=xla"):
        choose_kernel(gpu, "gpu", "float32")
    with pytest.raises(ValueError, match="the platform is cpu"):
        choose_kernel(dataclasses.replace(gpu, attention="cudnn"), "cpu", "bfloat16")
    require_kernel("xla", "no call at all")
    with pytest.raises(RuntimeError, match="no __cudnn"):
        require_kernel("cudnn", "HloModule step")

"""Workloads of Llama-like decoders written by hand, as `jaxlm` reads them off a model."""

from planners.plan import Tensor, Workload


def llama(
    name: str,
    *,
    layers: int,
    embed: int,
    heads: int,
    kv_heads: int | None = None,
    mlp: int,
    vocab: int,
    batch: int,
    sequence: int,
    dtype: str = "bfloat16",
    kernel: str = "cudnn",
) -> Workload:
    """A gated decoder with RMSNorm, rotary positions, an untied head; AdamW, float32 masters."""
    kv_heads = kv_heads or heads
    head_dim = embed // heads
    shapes: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
        "embed/table": ((vocab, embed), ("vocab", "embed")),
        "blocks/attn_norm": ((layers, embed), ("layers", "norm")),
        "blocks/attn/q": ((layers, embed, heads, head_dim), ("layers", "embed", "heads", "head_dim")),
        "blocks/attn/k": ((layers, embed, kv_heads, head_dim), ("layers", "embed", "kv_heads", "head_dim")),
        "blocks/attn/v": ((layers, embed, kv_heads, head_dim), ("layers", "embed", "kv_heads", "head_dim")),
        "blocks/attn/o": ((layers, heads, head_dim, embed), ("layers", "heads", "head_dim", "embed")),
        "blocks/mlp_norm": ((layers, embed), ("layers", "norm")),
        "blocks/mlp/gate": ((layers, embed, mlp), ("layers", "embed", "mlp")),
        "blocks/mlp/up": ((layers, embed, mlp), ("layers", "embed", "mlp")),
        "blocks/mlp/down": ((layers, mlp, embed), ("layers", "mlp", "embed")),
        "final_norm": ((embed,), ("norm",)),
        "head": ((embed, vocab), ("embed", "vocab")),
    }
    parameters = tuple(Tensor(name=n, shape=s, dtype="float32", axes=a) for n, (s, a) in shapes.items())
    optimizer = tuple(
        Tensor(name=f"opt/0/{moment}/{t.name}", shape=t.shape, dtype="float32", axes=t.axes)
        for moment in ("mu", "nu")
        for t in parameters
    )

    def kept(label: str, *axes: tuple[str, int]) -> Tensor:
        dims = (("batch", 1), ("length", sequence), *axes)
        return Tensor(name=label, shape=tuple(d for _, d in dims), dtype=dtype, axes=tuple(a for a, _ in dims))

    query, key = (("heads", heads), ("head_dim", head_dim)), (("kv_heads", kv_heads), ("head_dim", head_dim))
    activations = (
        kept("block_input", ("embed", embed)),
        kept("attn_norm", ("embed", embed)),
        kept("q", *query),
        kept("k", *key),
        kept("v", *key),
        kept("q_rotated", *query),
        kept("k_rotated", *key),
        kept("context", *query),
        kept("attn_residual", ("embed", embed)),
        kept("mlp_norm", ("embed", embed)),
        kept("gate", ("mlp", mlp)),
        kept("up", ("mlp", mlp)),
        kept("gate_activated", ("mlp", mlp)),
        kept("hidden", ("mlp", mlp)),
    )
    matrices = sum(t.size for t in parameters if "layers" in t.axes and "norm" not in t.axes)
    logits = kept("logits", ("vocab", vocab))
    return Workload(
        name=name,
        parameters=parameters,
        optimizer=optimizer,
        activations=activations,
        carry=kept("carry", ("embed", embed)),
        logits=Tensor(name="logits", shape=logits.shape, dtype="float32", axes=logits.axes),
        layers=layers,
        batch=batch,
        sequence=sequence,
        block_flops=2.0 * matrices,
        head_flops=2.0 * embed * vocab,
        attention_flops=4.0 * layers * embed * sequence,
        compute_dtype=dtype,
        kernel=kernel,
    )


def nano(
    batch: int = 8,
    *,
    layers: int = 4,
    embed: int = 128,
    heads: int = 4,
    kv_heads: int | None = None,
    mlp: int = 384,
    vocab: int = 4096,
    sequence: int = 256,
    dtype: str = "float32",
) -> Workload:
    return llama(
        "nano",
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        mlp=mlp,
        vocab=vocab,
        batch=batch,
        sequence=sequence,
        dtype=dtype,
        kernel="xla",
    )


def llama_1b(batch: int = 64, sequence: int = 8192) -> Workload:
    return llama(
        "llama-1b",
        batch=batch,
        sequence=sequence,
        layers=16,
        embed=2048,
        heads=32,
        kv_heads=8,
        mlp=8192,
        vocab=128256,
    )


def llama_7b(batch: int = 16, sequence: int = 4096) -> Workload:
    return llama(
        "llama2-7b",
        batch=batch,
        sequence=sequence,
        layers=32,
        embed=4096,
        heads=32,
        mlp=11008,
        vocab=32000,
    )


def llama_8b(batch: int = 128, sequence: int = 8192) -> Workload:
    return llama(
        "llama3-8b",
        batch=batch,
        sequence=sequence,
        layers=32,
        embed=4096,
        heads=32,
        kv_heads=8,
        mlp=14336,
        vocab=128256,
    )


def llama_70b(batch: int = 512, sequence: int = 4096) -> Workload:
    return llama(
        "llama2-70b",
        batch=batch,
        sequence=sequence,
        layers=80,
        embed=8192,
        heads=64,
        kv_heads=8,
        mlp=28672,
        vocab=32000,
    )

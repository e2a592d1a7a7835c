"""Published end-to-end runs of Megatron-LM, 1.7B to 1T: Korthikanti et al. (arXiv:2205.05198, table 5) and Narayanan
et al. (SC21, arXiv:2104.04473, table 1)."""

import numpy as np

from experiments.benchmarks.published import closed_form, vtrain
from experiments.benchmarks.published.judge import Verdict, errors
from experiments.benchmarks.published.megatron_style import MEGATRON, REMATS, Runs, a100, runs
from experiments.benchmarks.published.tables import Source, Table
from planners.learning.calibration import Calibration

KORTHIKANTI, SC21 = "korthikanti2022_table5_end2end", "megatron_sc21_table1"

NETWORK = 25e9
"""Bytes/s of the network for each device: Selene has eight 200 Gb/s InfiniBand adapters per node (SC21, section 5)."""

SCRIPT = {1.7: (16, 1), 3.6: (16, 1), 7.5: (16, 1), 18.4: (8, 1), 39.1: (4, 1)}
SCRIPT |= {76.1: (2, 3), 145.6: (2, 2), 310.1: (1, 2), 529.6: (1, 3), 1008.0: (1, 1)}
"""Billions of parameters -> microbatch and stages per device, which table 1 of SC21 does not print.

From the authors' script, github.com/NVIDIA/Megatron-LM, examples/sc21/run_table_1.sh.
"""

WORTH = 10.0
"""Runs that a whole file counts as when it calibrates another trainer's: its rows share their systematic errors."""


def verdicts(source: Source, seed: int) -> list[Verdict]:
    """Both tables together, first by constants alone, then moved by vTrain's runs. `seed` is unused."""
    sets = [
        (table, make(table), seen(table))
        for name, make, keep, seen in (
            (KORTHIKANTI, _korthikanti, lambda row: row["iter_time_s"] != "", lambda t: t.numbers("iter_time_s")),
            (SC21, _sc21, lambda row: float(row["params_b"]) in SCRIPT, lambda t: t.numbers("iter_time_s_derived")),
        )
        if (found := source.judged(name)) is not None and len(table := found.where(keep))
    ]
    if not sets:
        return []
    measured = np.concatenate([seconds for _, _, seconds in sets])
    judged = frozenset(digest for table, _, _ in sets for digest in table.digests)
    what = " + ".join(table.name for table, _, _ in sets)
    train = [t for n in (vtrain.SINGLE, vtrain.MULTI) if (t := source.other(n)) is not None and len(t)]
    calibration, found = Calibration.prior(MEGATRON, noise=vtrain.NOISE), []
    leagues = [("zero-shot", vtrain.PRIOR, frozenset[str](), calibration)]
    if train:
        fitted = frozenset(digest for table in train for digest in table.digests)
        constants = f"{vtrain.PRIOR}; moved by {' and '.join(t.name for t in train)}, each worth {WORTH:g} runs"
        leagues.append(("fitted on vTrain", constants, fitted, _fit(train, calibration)))
    for league, constants, fitted, known in leagues:
        predicted = np.concatenate([made.seconds(known.assumptions) for _, made, _ in sets])
        found.append(
            Verdict(
                what=what,
                league=league,
                quantity=vtrain.STEP,
                ours=errors(predicted, measured),
                baselines=_closed(sets, train, measured) if fitted else {},
                published={"Calculon on 8 of them, tuned on its own (planners.md)": {"mean": 3.65, "max": 8.87}},
                targets={"mean": 3.6, "max": 8.0},
                fitted=fitted,
                judged=judged,
                constants=constants,
                details={"predicted": predicted.tolist(), "measured": measured.tolist()},
            )
        )
    return found


def _fit(train: list[Table], calibration: Calibration) -> Calibration:
    pairs = [vtrain.priced(table) for table in train]
    weights = np.concatenate([np.full(len(seen), min(1.0, WORTH / len(seen))) for _, seen in pairs])
    return calibration.update(
        lambda a: np.concatenate([made.seconds(a) for made, _ in pairs]),
        np.concatenate([seen for _, seen in pairs]),
        weights=weights,
    )


def _closed(
    sets: list[tuple[Table, Runs, np.ndarray]], train: list[Table], measured: np.ndarray
) -> dict[str, np.ndarray]:
    """The closed form, fitted on the last of the files; it knows full recomputation and no interleaving."""
    form = closed_form.fit(closed_form.Runs.of(train[-1]))
    predicted = []
    for table, made, seconds in sets:
        here = slice(0, made.count)
        sizes = made.candidates.sizes
        rows = closed_form.Runs(
            hidden=np.asarray(made.work.width, dtype=float),
            layers=np.asarray(made.work.layers, dtype=float),
            heads=np.asarray(made.work.heads, dtype=float),
            sequence=np.asarray(made.work.sequence, dtype=float),
            tensor=sizes["tensor"].astype(float),
            data=sizes["data"].astype(float),
            stage=sizes["stage"].astype(float),
            microbatch=(made.candidates.microbatch // made.candidates.replicas).astype(float),
            batch=np.asarray(made.work.batch, dtype=float),
            devices=table.numbers("gpus"),
            seconds=seconds,
        )
        predicted.append(closed_form.seconds(form, rows)[here])
    name = f"closed form fitted on {train[-1].name} (all as full recompute)"
    return {name: errors(np.concatenate(predicted), measured)}


def _korthikanti(table: Table) -> Runs:
    selective = np.array([row["recompute"].startswith("selective") for row in table.rows])
    remat = np.where(selective, REMATS.index("selective"), REMATS.index("full"))
    each, stages = table.numbers("micro_batch"), table.numbers("vpp", empty=1.0)
    split = table.text("sequence_parallel") == "True"
    return _runs(table, remat, each.astype(int), stages.astype(int), split)


def _sc21(table: Table) -> Runs:
    each, stages = np.array([SCRIPT[float(row["params_b"])] for row in table.rows]).T
    remat = np.full(len(table), REMATS.index("full"))
    return _runs(table, remat, each, stages, np.zeros(len(table), dtype=bool))


def _runs(table: Table, remat: np.ndarray, each: np.ndarray, stages: np.ndarray, split: np.ndarray) -> Runs:
    whole = lambda name: table.numbers(name).astype(int)
    return runs(
        cluster=a100(NETWORK),
        layers=whole("layers"),
        width=whole("hidden"),
        heads=whole("heads"),
        sequence=whole("seq_len"),
        vocabulary=whole("vocab"),
        batch=whole("global_batch"),
        tensor=whole("tp"),
        data=whole("dp"),
        stage=whole("pp"),
        remat=remat,
        microbatches=(each,),
        virtual=(stages,),
        sequence_parallel=split,
    )

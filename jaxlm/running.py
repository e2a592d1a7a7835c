"""What a run consists of under the plan that it follows now: session, compiled step, judge, shares, comparison."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from jaxlm.balancing import Balancer
from jaxlm.checkpoints.processes import first_does, meet
from jaxlm.classification import ClassifierJudge
from jaxlm.data.labelled.corpus import LabelledCorpus
from jaxlm.data.loader import Loader
from jaxlm.evaluation import Judge
from jaxlm.measured import Recorder
from jaxlm.model.attention import require_kernel
from jaxlm.privacy.sampling import Secret
from jaxlm.session import Session
from jaxlm.setup import Setup
from jaxlm.task import AnyCorpus, AnyLoader
from planners.plan import Plan


def require_savings(plan: Plan, used: float) -> None:
    """Raises RuntimeError where rematerialisation by value has not saved half of the memory that it was to save, by
    XLA's count of the `used` bytes per device. Without this a policy that the compiler undid would go unseen."""
    predicted = plan.predicted
    if predicted is None or predicted.unrematerialised is None:
        return
    runtime = predicted.memory.get("runtime", 0.0)
    expected, without = predicted.memory_bytes - runtime, predicted.unrematerialised - runtime
    if used > (expected + without) / 2:
        raise RuntimeError(
            f"the plan rematerialises to save memory, and the compiled step needs {used / 2**30:.2f} GiB per device: "
            f"predicted were {expected / 2**30:.2f}, and {without / 2**30:.2f} without any rematerialisation. "
            "Set plan.remat=full or none, or plan.remat to a YAML file of your own segments"
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes per device of a compiled step, as XLA counts them. `outputs` are those that no argument makes room for."""

    arguments: int
    temporaries: int
    outputs: int

    @property
    def used(self) -> int:
        return self.arguments + self.temporaries


class Charges(Protocol):
    """Pays for each step of private training (jaxlm/spending.py); `multiplier` is that of the noise."""

    multiplier: float

    def __call__(self, step: int) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Running:
    """A run under one plan. Use inside `with jax.set_mesh(running.session.mesh)`.

    Attributes:
        step: the compiled step; None until `compile`.
        balancer: keeps the replicas' shares, where the plan has them unequal.
        spending: charges each step, where training is private.
    """

    setup: Setup
    session: Session
    judge: Judge | ClassifierJudge
    recorder: Recorder
    balancer: Balancer | None
    step: Any = None
    spending: Charges | None = None

    def feed(self, loader: AnyLoader) -> Any:
        """Batches as the plan cuts them."""
        batch = self.setup.plan.batch
        if self.spending is not None:
            assert isinstance(loader, Loader), "the configuration refuses private training of classifiers"
            return self.session.poisson_feed(loader, Secret.fresh(first_does))
        if self.balancer is None:
            return self.session.feed(loader, batch.accumulation, batch.microbatch)
        return self.session.shared_feed(loader, self.balancer.slots, self.balancer.sequences, self.balancer.now)

    def compile(self, batch: Any, say: Callable[[str], None]) -> float:
        """Compiles the step for batches like this one, and says what it takes; the seconds that took."""
        began = time.monotonic()
        balanced = self.balancer is not None
        if self.spending is not None:
            self.step = self.session.compile_private(batch, self.spending.multiplier)
            self.step.charge = self.spending
        elif balanced:
            self.step = self.session.compile_balanced(batch, self.setup.options.pace)
        else:
            self.step = self.session.compile_step(batch)
        meet()
        seconds = time.monotonic() - began
        require_kernel(self.session.how.kernel, self.step.as_text() or "")
        memory = self.memory()
        if memory is not None:
            if not balanced and self.spending is None:  # a step of two programs teaches nothing about the memory of one
                self.recorder.compiled = {
                    "arguments": float(memory.arguments),
                    "temporaries": float(memory.temporaries),
                    "outputs": float(memory.outputs),
                }
            predicted = self.setup.plan.predicted
            expected = predicted.memory_bytes - predicted.memory.get("runtime", 0.0) if predicted else 0.0
            beside = f" (predicted {expected / 2**20:,.0f} MiB, both without runtime libraries)" if predicted else ""
            say(f"step compiled in {seconds:.1f} s: {memory.used / 2**20:,.0f} MiB per device by XLA{beside}")
            require_savings(self.setup.plan, memory.used)
        return seconds

    def memory(self) -> Memory | None:
        """Of the compiled step; None where the compiler does not tell."""
        analysis = self.step.memory_analysis()
        if analysis is None:
            return None
        new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        return Memory(analysis.argument_size_in_bytes, analysis.temp_size_in_bytes, new)

    def shares(self) -> dict[str, Any] | None:
        """The replicas' shares as a checkpoint keeps them; None where they are even."""
        return None if self.balancer is None else self.balancer.to_json()

    def under(self, setup: Setup, shares: dict[str, Any] | None) -> "Running":
        """The same compiled step under a plan of the same program, from these shares on."""
        recorder = Recorder(setup, compiled=self.recorder.compiled)
        return Running(setup, self.session, self.judge, recorder, _balancer(setup, shares), self.step)

    def close(self) -> None:
        if self.spending is not None:
            self.spending.close()
        if hasattr(self.step, "close"):
            self.step.close()


def running(
    setup: Setup,
    session: Session,
    corpus: AnyCorpus,
    shares: dict[str, Any] | None = None,
    spending: Charges | None = None,
) -> Running:
    """A run under the plan of `setup`, not compiled yet; `shares` are those that a checkpoint or another plan left, and
    `spending` pays where training is private."""
    balancer = _balancer(setup, shares)
    return Running(setup, session, judge_of(session, corpus), Recorder(setup), balancer, spending=spending)


def judge_of(session: Session, corpus: AnyCorpus) -> Judge | ClassifierJudge:
    """Who judges what a run has learned, on its held-out rows."""
    return ClassifierJudge(session, corpus) if isinstance(corpus, LabelledCorpus) else Judge(session, corpus)


def _balancer(setup: Setup, shares: dict[str, Any] | None) -> Balancer | None:
    plan = setup.plan
    return None if plan.batch.balance is None else Balancer(plan, setup.run.data.sequence, shares)

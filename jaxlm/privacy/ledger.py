"""The ledger of a privacy budget: one SQLite file, shared by all who ask questions about the same protected rows.

A charge has two phases. `reserve` takes it out of the budget and returns once that is durable; only then may the
mechanism run. `settle` says that it ran. A charge that is never settled stays spent: nobody can know how far its
mechanism came. `settle(..., ran=False)` gives a charge back, for the one who knows that no protected row was read.

Each operation is one transaction with a connection of its own (`BEGIN IMMEDIATE`, `synchronous=FULL`), so threads,
processes and crashes at any point leave either the whole charge or nothing, and a caller that got no answer ran
nothing. The file must lie on a local disk: SQLite's locks do not hold on network file systems.
"""

import fcntl
import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.governance.disk import sync_folder
from jaxlm.privacy.budget import Budget, Units, dumped, loaded, nothing, plus
from jaxlm.privacy.errors import BudgetSpent, NotPrivate, PrivacyError
from jaxlm.privacy.mechanisms import Mechanism, mechanism

SCHEMA = 1
RESERVED, SETTLED, VOID = "reserved", "settled", "void"

_TABLES = """
create table about (key text primary key, value text not null) without rowid;
create table charges (
    number integer primary key, id text not null unique, mechanism text not null, count integer not null,
    cost text not null, state text not null check (state in ('reserved', 'settled', 'void')), who text not null
);
create index by_mechanism on charges (mechanism, state);
"""


@dataclass(frozen=True, slots=True)
class Charge:
    """What was taken out of a budget.

    Attributes:
        id: random, the same in the ledger and in every log.
        number: in the order of the ledger, from 1.
        mechanism, count: so many queries of this kind.
        cost: at each declared order.
        epsilon: what the filter says is spent, this charge included.
        state: `reserved`, `settled` or `void`.
        who: what the caller said of itself: run, step.
    """

    id: str
    number: int
    mechanism: Mechanism
    count: int
    cost: Units
    epsilon: float
    state: str
    who: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spending:
    """What a ledger holds.

    Attributes:
        queries: how many of each mechanism count, those that were never settled included.
        spent: at each declared order.
        epsilon: of the filter.
        open: charges that were reserved and not settled.
        void: charges that were given back.
    """

    queries: dict[Mechanism, int]
    spent: Units
    epsilon: float
    open: int
    void: int


class Ledger:
    """A ledger file.

    Args:
        path: of the file; made when it is new and a budget is given.
        budget: what a new ledger is declared with; of one that is there, what it must have been declared with. None
            takes what is there.
        seconds: how long to wait while others charge.
        read_only: charge nothing, and leave no trace beside the file.

    Attributes:
        id: random, made with the file.
        budget: what it was declared with; it never changes.

    Raises:
        PrivacyError: it is missing, damaged, no ledger, or of another budget.
    """

    def __init__(self, path: Path, budget: Budget | None = None, *, seconds: float = 120.0, read_only: bool = False):
        self.path, self.seconds, self.read_only = path, seconds, read_only
        if budget is None and not path.is_file():
            raise PrivacyError(f"{path} is no privacy ledger: there is no such file")
        new = not path.exists()
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as db:
            if budget is not None and not db.execute("select 1 from sqlite_master").fetchone():
                for statement in filter(str.strip, _TABLES.split(";")):
                    db.execute(statement)
                about = {"schema": SCHEMA, "id": uuid.uuid4().hex, "budget": budget.to_json()}
                rows = [(key, json.dumps(value)) for key, value in about.items()]
                rows.append(("spent", json.dumps(dumped(nothing(budget)))))
                db.executemany("insert into about values (?, ?)", rows)
            about = self._about(db)
            found = self._costs(db)
        if new:
            sync_folder(path.parent)
        if about.get("schema") != SCHEMA:
            raise PrivacyError(f"{path} is a ledger of schema {about.get('schema')}, this jaxlm reads {SCHEMA}")
        self.id: str = about["id"]
        self.budget = Budget.from_json(about["budget"])
        if budget is not None and budget.to_json() != about["budget"]:
            was, now = about["budget"], budget.to_json()
            changed = "; ".join(f"{key} was {was.get(key)}, is {now[key]}" for key in now if was.get(key) != now[key])
            raise PrivacyError(
                f"{path} was declared with another budget ({changed}): a budget is declared before the first query and "
                "stays. Give it the one it had, or begin another ledger, which is honest only for other rows"
            )
        if (sum := _sum(found, self.budget)) != (kept := loaded(about["spent"])):
            raise PrivacyError(f"{path} is damaged: its charges add up to {dumped(sum)}, it says {dumped(kept)}")

    def reserve(
        self,
        query: Mechanism,
        count: int = 1,
        *,
        who: Mapping[str, Any] | None = None,
        settles: Charge | None = None,
    ) -> Charge:
        """Takes `count` queries out of the budget, durably. Only after this may they run. `settles` names a charge that
        ran, to be settled along with it.

        Raises:
            BudgetSpent: they do not fit; nothing was charged.
            NotPrivate: the query has no finite cost at any declared order.
            PrivacyError: the ledger cannot be written.
        """
        if count < 1:
            raise PrivacyError(f"count={count} of a charge must be positive")
        cost, said = self.budget.cost(query, count), dict(who or {})
        if all(units is None for units in cost):
            orders = ", ".join(f"{order:g}" for order in self.budget.orders)
            raise NotPrivate(f"{json.dumps(query.to_json())} has no finite cost at the declared orders ({orders})")
        with self._transaction() as db:
            spent = loaded(self._about(db)["spent"])
            after = plus(spent, cost)
            if not self.budget.fits(after):
                raise BudgetSpent(
                    f"the privacy budget {self.path} is used up: epsilon {self.budget.epsilon_of(spent):.4g} of "
                    f"{self.budget.epsilon:g} (delta {self.budget.delta:g}) is spent, and {count:,} more of "
                    f"{json.dumps(query.to_json())} would make it {self.budget.epsilon_of(after):.4g}"
                )
            id = uuid.uuid4().hex
            row = (id, json.dumps(query.to_json()), count, json.dumps(dumped(cost)), RESERVED, json.dumps(said))
            number = db.execute(
                "insert into charges (id, mechanism, count, cost, state, who) values (?, ?, ?, ?, ?, ?)", row
            ).lastrowid
            db.execute("update about set value = ? where key = 'spent'", (json.dumps(dumped(after)),))
            if settles is not None:
                db.execute("update charges set state = 'settled' where id = ? and state = 'reserved'", (settles.id,))
        assert number is not None
        return Charge(id, number, query, count, cost, self.budget.epsilon_of(after), RESERVED, said)

    def settle(self, charge: Charge | str, *, ran: bool = True) -> None:
        """Says that the queries of a reserved charge ran; or, by who knows it for certain, that they read no protected
        row and never will, which gives the charge back.

        Raises:
            PrivacyError: there is no such charge, or it is settled already.
        """
        id = charge if isinstance(charge, str) else charge.id
        with self._transaction() as db:
            row = db.execute("select cost, state from charges where id = ?", (id,)).fetchone()
            if row is None or row[1] != RESERVED:
                raise PrivacyError(f"{self.path} has no charge {id} to settle" + (f": it is {row[1]}" if row else ""))
            db.execute("update charges set state = ? where id = ?", (SETTLED if ran else VOID, id))
            if not ran:
                back: Units = tuple(None if units is None else -units for units in loaded(json.loads(row[0])))
                spent = plus(loaded(self._about(db)["spent"]), back)
                if None in spent:  # a sum that became infinite is added up again without this charge
                    spent = _sum(self._costs(db), self.budget)
                db.execute("update about set value = ? where key = 'spent'", (json.dumps(dumped(spent)),))

    def spending(self) -> Spending:
        """What has been spent so far, added up from the charges."""
        with self._transaction() as db:
            counts = db.execute("select state, count(*) from charges group by state").fetchall()
            rows = db.execute(
                "select mechanism, sum(count) from charges where state != 'void' group by mechanism "
                "order by min(number)"
            ).fetchall()
            spent = _sum(self._costs(db), self.budget)
        queries = {mechanism(json.loads(said)): int(count) for said, count in rows}
        states = dict(counts)
        epsilon = self.budget.epsilon_of(spent)
        return Spending(queries, spent, epsilon, states.get(RESERVED, 0), states.get(VOID, 0))

    def charges(self) -> list[Charge]:
        """Every charge in order; `epsilon` is what was spent after it, without those that were given back later."""
        with self._transaction() as db:
            rows = db.execute(
                "select id, number, mechanism, count, cost, state, who from charges order by number"
            ).fetchall()
        found, spent = [], nothing(self.budget)
        for id, number, said, count, cost, state, who in rows:
            units = loaded(json.loads(cost))
            spent = spent if state == VOID else plus(spent, units)
            query = mechanism(json.loads(said))
            epsilon = self.budget.epsilon_of(spent)
            found.append(Charge(id, number, query, count, units, epsilon, state, json.loads(who)))
        return found

    def _about(self, db: sqlite3.Connection) -> dict[str, Any]:
        return {key: json.loads(value) for key, value in db.execute("select key, value from about")}

    def _costs(self, db: sqlite3.Connection) -> list[tuple[str, int]]:
        """Each cost that counts, and how many charges have it."""
        return db.execute("select cost, count(*) from charges where state != 'void' group by cost").fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self.read_only:
            where, turn, begin = f"{self.path.absolute().as_uri()}?mode=ro", nullcontext(), "begin"
        else:
            where, turn, begin = self.path.absolute().as_uri(), self._turn(), "begin immediate"
        try:
            with turn, closing(sqlite3.connect(where, uri=True, timeout=self.seconds, isolation_level=None)) as db:
                # The journal stays and its emptied head is synchronised, which is the commit: no folder is written.
                if not self.read_only:
                    db.execute("pragma journal_mode = persist")
                    db.execute("pragma synchronous = full")
                db.execute(begin)
                try:
                    yield db
                except BaseException:
                    db.execute("rollback")
                    raise
                db.execute("commit")
        except (sqlite3.Error, json.JSONDecodeError, OSError) as error:
            raise PrivacyError(f"the privacy ledger {self.path} cannot be used: {error}") from None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Those who want to charge wait in the kernel, one behind the other: SQLite alone would have each look again
        after a while, and 64 of them take most of the time for that. Its own lock is what counts."""
        with self.path.with_name(f"{self.path.name}.lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)


def _sum(costs: Iterable[tuple[str, int]], budget: Budget) -> Units:
    spent = nothing(budget)
    for cost, times in costs:
        spent = plus(spent, tuple(None if units is None else units * times for units in loaded(json.loads(cost))))
    return spent

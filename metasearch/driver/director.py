"""The director: asks the strategy, hands proposals to lanes, writes the ledger, tells the strategy. Plain Python, no Ray.

All that it knows is in the ledger: a director that is killed comes back by replaying it, and a trial that was done is never
run again. One call of a lane is one transaction (the end of a trial, its tell, the next ask and its start), so one fsync; what
is answered is on the disk before it is answered, and every call may be repeated without harm.
"""
from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metasearch.crashpoint import crashpoint
from metasearch.driver import letters, opening, worker
from metasearch.driver import status as status_file
from metasearch.driver.folder import lock
from metasearch.driver.messages import Assignment, Ending, Line, Lost, StorageFailure, Wait
from metasearch.driver.patience import Patience
from metasearch.driver.snapshot import load_snapshot, save_snapshot
from metasearch.driver.spending import FAILED, Spending
from metasearch.driver.start import PARCEL
from metasearch.driver.status import Status
from metasearch.driver.study import Budget
from metasearch.driver.twins import Twins, reuse
from metasearch.driver.worker import stack_file
from metasearch.home import parcel_path
from metasearch.ledger import LedgerError, TrialRow, finite
from metasearch.objectives import MODES, Mode
from metasearch.records import Outcome, Proposal
from metasearch.strategies import Strategy

if TYPE_CHECKING:
    from metasearch.driver.study import Study

__all__ = ["Director", "trial_seed"]

DEATHS = 3  # a worker that dies so often in one trial, without a report in between, takes the trial with it
CHUNK = 1  # episodes at once in the second try of a trial that ran out of memory: the least that there is, for it is the last
SNAPSHOT = 100  # outcomes between two snapshots of a strategy that offers them,
SLOW = 0.5  # or seconds that it has spent since the last one: as much as has to be spent again after a kill
Loss = Literal["machine", "memory"]
log = logging.getLogger("metasearch.driver")


def trial_seed(study_seed: int, trial: int) -> int:
    """Every trial has its own seed: a function of the study's and the trial's number."""
    return int.from_bytes(hashlib.sha256(f"trial {study_seed} {trial}".encode()).digest()[:8], "big") >> 1


class Director:
    """Opens (or creates) a study's ledger, takes its lock and rebuilds its strategy.

    study:  what to run. folder: the study's own. owner: the pid that people know (the driver's, where this is an actor of its).
    about:  more for the ledger's first row (data digest, versions, code, ...).
    lanes_live: this director takes the place of one that died while its lanes went on.

    Raises LockedError, LedgerError, StudyMismatch.
    """

    def __init__(
        self, study: Study, folder: Path, *, owner: int | None = None, about: Mapping[str, Any] | None = None,
        lanes_live: bool = False,
    ) -> None:
        self.study, self.folder = study, folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._owner = owner or os.getpid()
        self._began = time.monotonic()
        self._earlier = 0.0  # seconds of earlier sessions
        self._since_snapshot = 0
        self._spent_since = 0.0  # seconds of the strategy, since its last snapshot
        self._stopping: str | None = None
        self._broken: Exception | None = None
        self._calls = 0
        self._patience = Patience(study.driver.trial_timeout)
        self._idle_at = -1  # number of ends at which the strategy had nothing to ask
        self._status_at = -math.inf
        steal = bool((about or {}).get(opening.STEAL)) and not lanes_live
        with contextlib.ExitStack() as undo:
            self._lock = undo.enter_context(lock(self.folder, owner=owner, steal=steal))
            self.space = study.space()
            self.strategy: Strategy = study.strategy()
            self._reset_counts()
            self.ledger, new = opening.opened(self.folder, study, self.space, self.strategy, about or {})
            undo.callback(self.ledger.close)
            self._unit = str(self.ledger.study().get("unit") or "score")
            self._replay()
            self.reason = opening.ended(self.ledger, study)
            if not new and self.reason is None and not lanes_live:
                self._resume()
            self._write_status(force=True)
            undo.pop_all()

    def _reset_counts(self) -> None:
        self.spending = Spending(self.study, self.strategy)
        self._twins = Twins(self.study, self.strategy, self.space)
        self._open: dict[int, None] = {}  # proposed, not ended; in order
        self._orphans: deque[int] = deque()  # proposed or started, but nobody's now
        self._causes: dict[int, str] = {}  # why an orphan is one
        self._lost: dict[str, Loss] = {}  # lanes whose process is known to have ended by no fault of its trial
        self._holder: dict[str, int] = {}  # lane -> its trial
        self._modes: dict[str, Mode] = {}
        self._numbers = 0
        self._ended_here = 0

    # -- what lanes call --------------------------------------------------------------------------------------------------

    def next(
        self, lane: str, process: str, ending: Ending | None = None, lines: tuple[Line, ...] = ()
    ) -> Assignment | Wait | None:
        """Writes down how the lane's last trial ended, and answers with its next; None: no more for this lane.

        process: a token of the lane's process. A lane that holds a trial and comes with another token has died and was started
        again: it gets its trial back. The same call twice gets the same answer twice.
        """
        self._calls += 1
        self._patience.called(lane, process)
        with self._transaction() as told:
            if ending is not None:
                self._end(ending, lines, told)
            held = self._holder.get(lane)
            if held is not None and self._trials[held].process == process:
                return self._assignment(held)  # the call is a repetition: its answer was lost
            if held is not None:
                self._died(held, told, self._lost.pop(lane, None))
            number = self._orphans[0] if self._orphans and not self._stopping else None
            if number is None and not self._stopping:
                number = self._propose(told)
            if number is not None:
                if self._orphans and self._orphans[0] == number:
                    self._orphans.popleft()
                self._start(number, lane, process)
                answer: Assignment | Wait | None = self._assignment(number)
            else:
                answer = self._nothing()
        self._after(told)
        return answer

    def end(self, lane: str, process: str, ending: Ending, lines: tuple[Line, ...] = ()) -> None:
        """Writes down how a trial ended, and hands out nothing."""
        with self._transaction() as told:
            self._end(ending, lines, told)
        self._after(told)

    def report(self, lane: str, process: str, trial: int, lines: tuple[Line, ...]) -> bool:
        """Writes reports; False: stop this trial. Without lines: the lane's process begins to work on the trial now."""
        self._patience.reported(lane, process)
        with self._transaction() as told:
            row = self._trials.get(trial)
            if row is None or row.ended or row.lane != lane or row.process != process:
                return False  # somebody else's by now
            self._report(trial, lines)
        self._prune(trial)
        self._after(told)
        return self._stopping is None

    def process(self, lane: str) -> str | None:
        """The token of the process that runs a lane's trial; None if it has none."""
        return self._trials[self._holder[lane]].process if lane in self._holder else None

    def lost(self, lane: str, loss: Loss) -> None:
        """Says, before the lane comes back, why its process has ended: the machine is gone, or had no memory left."""
        self._lost[lane] = loss

    def mode(self, signature: str, seconds: Mapping[str, float] | None = None) -> Mode | None:
        """How to run nets of a signature: the recorded choice, or the fastest of `seconds`, or None (nobody has measured)."""
        known = self._modes.get(signature)
        if known is not None or not seconds:
            return known
        measured = finite(seconds)
        choices = [mode for mode in MODES if mode in measured]
        choice = min(choices, key=lambda mode: measured[mode]) if choices else "vmap"
        with self._transaction():
            self.ledger.append("mode", {"signature": signature, "mode": choice, "seconds": measured})
        self._modes[signature] = choice
        return choice

    def note(self, trial: int | None, what: str) -> None:
        """Something worth knowing, for the ledger and the log."""
        log.warning("%s", what if trial is None else f"trial {trial}: {what}")
        with self._transaction():
            self.ledger.append("note", {"what": what}, trial=trial)

    def fail(self, reason: str, storage: bool = False) -> None:
        """The study cannot go on; every later call says so. storage: a worker cannot write what its trial has to leave."""
        self._broken = self._broken or (StorageFailure(reason) if storage else RuntimeError(reason))

    # -- what the driver calls --------------------------------------------------------------------------------------------

    def stop(self, reason: str = "interrupted") -> None:
        """No new trials; running ones are stopped at their next report, and go on from their last parcel after a resume."""
        self._stopping = self._stopping or reason

    @property
    def failure(self) -> Exception | None:
        """Why the director cannot go on."""
        return self._broken

    @property
    def finished(self) -> bool:
        return self.reason is not None

    def status(self) -> Status:
        spending, best, interval = self.spending, self.spending.best, None
        if best is not None and best.episodes is not None and len(best.episodes) > 1:
            from metasearch.track.statistics import mean_interval

            found = mean_interval(best.episodes)
            interval = (float(found.low), float(found.high))
        counts, elapsed = spending.counts, self.elapsed
        return Status(
            name=self.study.name, planned=spending.planned, used=spending.used, done=counts["done"], running=len(self._holder),
            failed=sum(counts[s] for s in FAILED), diverged=counts["diverged"], infeasible=counts["infeasible"],
            reused=counts["reused"], best_trial=best.id if best else None,
            best_score=best.outcome.score if best and best.outcome else None,
            best_low=interval[0] if interval else None, best_high=interval[1] if interval else None,
            eta_seconds=self._eta(elapsed), coverage=spending.coverage,
            coverage_wanted=self.study.budget.coverage, top=spending.goal.top if spending.goal else None,
            random_part=not self.strategy.uniform, elapsed_seconds=elapsed,
            reason=self.reason, lanes=tuple(sorted(self._holder)), pid=self._owner,
            host=socket.gethostname(), calls=self._calls, overdue=self._patience.overdue(self._holder), unit=self._unit,
        )

    @property
    def deadline(self) -> float | None:
        """Seconds without a report after which a trial is ended; None: nobody wants that, or no trial has reported yet."""
        return self._patience.deadline

    @property
    def elapsed(self) -> float:
        """Seconds that drivers have worked on this study, all sessions together."""
        return self._earlier + time.monotonic() - self._began

    def close(self, reason: str | None = None) -> None:
        """Ends this session. A study that is not finished gets a `stopped` row with the reason and the coverage that it has."""
        if self._lock.closed:
            return
        if self._broken is None and not self.finished:
            with self._transaction():
                self._stop_row(reason or self._stopping or "interrupted", final=False)
        self._holder.clear()  # nobody works for this director any more
        with contextlib.suppress(Exception):
            self._write_status(force=True)
        self.ledger.close()
        self._lock.close()

    # -- one transaction --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[list[Outcome]]:
        """Rows that become durable together. Yields the outcomes that were told in it.

        If it fails, the strategy has heard of rows that never were: this director is broken and says so from then on.
        """
        if self._broken is not None:
            raise Lost(f"{type(self._broken).__name__}: {self._broken}")
        told: list[Outcome] = []
        try:
            with self.ledger.together():
                yield told
        except Exception as error:
            self._broken = opening.what_it_means(error, self.ledger.path)
            raise self._broken from error

    @property
    def _trials(self) -> dict[int, TrialRow]:
        return self.ledger.trials()

    def _after(self, told: list[Outcome]) -> None:
        """What follows from a transaction that is on the disk."""
        self._since_snapshot += len(told)
        try:
            for outcome in told:
                self._prune(outcome.trial)
            if self._since_snapshot >= SNAPSHOT or (told and self._spent_since >= SLOW):
                self._since_snapshot, self._spent_since = 0, 0.0
                save_snapshot(self.folder, self.strategy, self.ledger.last)
        except OSError as error:  # of parcels that nobody needs, or of a cache; where rows are lost a study ends
            log.warning("a study goes on without it, but: %s", error)
        self._write_status(force=self._ended_here == 0)  # the first trials may take an hour

    @contextlib.contextmanager
    def _thinking(self) -> Iterator[None]:
        """Counts what the strategy costs. Nothing depends on it but how often its state is kept."""
        began = time.thread_time()
        yield
        self._spent_since += time.thread_time() - began

    # -- rows and what follows from them ----------------------------------------------------------------------------------

    def _propose(self, told: list[Outcome]) -> int | None:
        """Asks until there is something to run; answers proposals itself that need no run. The number, or None."""
        while self.reason is None:
            if (reason := self.spending.spent(self.elapsed)) is not None:
                if not self._open:
                    self._stop_row(reason, final=True)
                return None
            self.strategy.closed = self.spending.closed
            if self.strategy.closed and not self.strategy.children:
                if not self._open:
                    self._stop_row(self.spending.closed_by, final=True)
                return None
            if self._idle_at == self.spending.ended and self._open:
                return None  # it had nothing to ask, and has been told nothing since
            with self._thinking():
                proposal = self.strategy.ask()
            if proposal is None:
                self._idle_at = self.spending.ended
                if not self._open:
                    self._stop_row(self.spending.closed_by if self.strategy.closed else "strategy", final=True)
                return None
            number = self._numbers + 1
            proposal = proposal.stamped(trial_seed(self.study.seed, number))
            self.ledger.append("proposed", proposal.to_json(), trial=number)
            self._proposed(number, proposal)
            if (answer := self._answered(number, proposal)) is not None:
                self._write_end(answer, told)
            elif number in self._orphans:
                self._orphans.remove(number)
                return number
        return None

    def _proposed(self, number: int, proposal: Proposal) -> None:
        """Counts a proposal."""
        self._numbers = max(self._numbers, number)
        self._open[number] = None
        if self._twins.proposed(number, proposal, self._open):
            self._orphans.append(number)
        self.spending.proposed(number, proposal, self._twins.name(number, proposal))

    def _answered(self, number: int, proposal: Proposal) -> Ending | None:
        """The end of a proposal that needs no run: infeasible, or the same as one that has ended."""
        try:
            self.space.validate(proposal.config)
        except ValueError as error:
            return Ending(number, "infeasible", reason=str(error))
        parent = proposal.parent
        if parent is not None and parent not in self._trials:
            return Ending(number, "error", reason=f"it goes on from trial {parent}, which this study does not have")
        first = self._twins.first(number)
        if first == number or first in self._open:
            return None
        return reuse(number, proposal, self._trials[first])

    # -- running ----------------------------------------------------------------------------------------------------------

    def _start(self, number: int, lane: str, process: str) -> None:
        row = self._trials[number]
        starts, own, _ = self._parcels(row)
        self._holder[lane] = number
        body: dict[str, Any] = {
            "lane": lane, "process": process, "attempt": row.attempts + 1, "start": starts[0] if starts else None, "own": own,
            "cause": self._causes.pop(number, "new"), **({} if row.chunk is None else {"chunk": row.chunk}),
        }
        if (deadline := self._patience.started(number)) is not None:
            body["deadline"] = deadline
        self.ledger.append("started", body, trial=number)

    def _assignment(self, number: int) -> Assignment:
        row = self._trials[number]
        starts, own, fallback = self._parcels(row)
        hours = self.study.budget.hours
        left = None if hours is None else max(0.0, hours * 3600 - self.elapsed)
        return Assignment(number, row.proposal, row.attempts, starts, own, fallback, row.seconds, left, row.chunk,
                          self._patience.told(number), worker.LEAST if self._patience.automatic else None)

    def _parcels(self, row: TrialRow) -> tuple[tuple[str, ...], bool, str | None]:
        """(where to start, best first; whether those are its own; the parent's parcel, or the study's start)."""
        own = tuple(str(p) for p in map(self._located, reversed(row.checkpoints)) if p.is_file())
        parent = None if row.proposal.parent is None else self._trials.get(row.proposal.parent)
        theirs = None if parent is None or parent.checkpoint is None else self._located(parent.checkpoint)
        inherited = str(theirs) if theirs is not None and theirs.is_file() else None
        if row.proposal.parent is None and self.study.train.start is not None:
            inherited = str(self.folder / PARCEL)  # if it is gone, the trial says so
        if own:
            return own, True, inherited
        return ((inherited,) if inherited else ()), False, None

    def _located(self, checkpoint: str) -> Path:
        return parcel_path(self.folder, checkpoint)

    def _report(self, trial: int, lines: tuple[Line, ...]) -> None:
        before = self._trials[trial].seconds
        for line in lines:
            self._patience.waited(line.seconds - before)
            before = line.seconds
            body = {
                "step": line.step, "metrics": finite(line.metrics), "score": line.score, "checkpoint": line.checkpoint,
                "seconds": line.seconds, "elapsed": self.elapsed,
            }
            if line.found is not None:
                body["found"] = line.found
            self.ledger.append("report", body, trial=trial, at=line.at)

    def _end(self, ending: Ending, lines: tuple[Line, ...], told: list[Outcome]) -> None:
        """An end that a lane tells; told twice, it counts once: also one that is tried again, with fewer episodes at once."""
        row = self._trials.get(ending.trial)
        if row is None:
            raise LedgerError(f"a lane ended trial {ending.trial}, which {self.ledger.path} does not know")
        if row.ended or ending.chunk != row.chunk:
            return
        self._report(ending.trial, lines)
        self._patience.ended(ending.seconds - self._trials[ending.trial].seconds)
        self._ended_or_again(ending, told)

    def _ended_or_again(self, ending: Ending, told: list[Outcome]) -> None:
        """A trial that ran out of memory is tried once more with fewer episodes at once, in whatever process comes next."""
        row = self._trials[ending.trial]
        if ending.status != "oom" or row.chunk is not None:
            self._write_end(ending, told)
            return
        body = {"cause": "oom", "chunk": CHUNK, "reason": ending.reason, "step": ending.step, "seconds": ending.seconds}
        self.ledger.append("retry", body, trial=row.id)
        self._again(row.id, "oom")

    def _again(self, number: int, cause: str) -> None:
        """A trial that is nobody's now goes on before all others."""
        self._release(number)
        self._causes[number] = cause
        if number not in self._orphans:
            self._orphans.appendleft(number)

    def _write_end(self, ending: Ending, told: list[Outcome]) -> None:
        """The `ended` row and everything that follows from it: counts, tell, twins."""
        row = self._trials[ending.trial]
        outcome = ending.outcome(row.proposal)
        self.ledger.append(
            "ended",
            {**outcome.to_json(), "metrics": finite(outcome.metrics), "seconds": ending.seconds, "checkpoint": ending.checkpoint,
             "elapsed": self.elapsed},
            trial=ending.trial, blob=ending.episodes,
        )
        twins = self._counted(row)
        self._ended_here += 1
        told.append(outcome)
        with self._thinking():
            self.strategy.tell(outcome)
        for twin in twins:
            self._write_end(reuse(twin, self._trials[twin].proposal, row), told)

    def _counted(self, row: TrialRow) -> list[int]:
        """Counts an ended trial. Those that waited for it and are to be answered; if it failed, one of them runs in its place."""
        self._open.pop(row.id, None)
        with contextlib.suppress(ValueError):
            self._orphans.remove(row.id)
        self._release(row.id)
        self.spending.finished(row, self._twins.name(row.id, row.proposal))
        answered, instead = self._twins.ended(row, self._open)
        if instead is not None:
            self._orphans.append(instead)
        return answered

    def _died(self, number: int, told: list[Outcome], loss: Loss | None) -> None:
        """The process that ran a trial is gone: adopt its letter, or let the trial go on, or give it up. What is no fault of
        the trial's does not count against it."""
        row = self._trials[number]
        self._release(number)
        if self._adopted(number, told) or self._hung(number, told):
            return
        if loss == "machine":
            self._again(number, "infrastructure")
            return
        if loss == "memory":
            reason = (
                "its machine had no memory left, so Ray ended its worker. Lower the meta-batch or the sizes of the space, or "
                "give a trial a larger share of a machine (driver.cpus)."
            )
            step = row.report.step if row.report else 0
            self._ended_or_again(Ending(number, "oom", reason=reason, step=step, chunk=row.chunk), told)
            return
        if row.barren + 1 >= DEATHS:
            reason = (
                f"its worker died {row.barren + 1} times without a report in between. The system may have ended it for want of "
                f"memory: look at its log, lower the meta-batch, or give a trial a larger share (driver.cpus, driver.gpus)."
            )
            self._write_end(Ending(number, "error", reason=reason, step=row.report.step if row.report else 0), told)
            return
        self._again(number, "lane")

    def _adopted(self, number: int, told: list[Outcome]) -> bool:
        letter = letters.read(self.folder, number)
        if letter is None or letter.chunk != self._trials[number].chunk:
            return False  # there is none, or it is of an attempt before the last
        self._ended_or_again(letter, told)
        return True

    def _hung(self, number: int, told: list[Outcome]) -> bool:
        row = self._trials[number]
        stacks = stack_file(self.folder, number, row.attempts)
        if not stacks.is_file() or stacks.stat().st_size == 0:
            return False
        reason = f"{self._patience.hung(number)}; its stacks are in {stacks}"
        self._write_end(Ending(number, "error", reason=reason, step=row.report.step if row.report else 0), told)
        return True

    # -- the end --------------------------------------------------------------------------------------------------------------

    def _nothing(self) -> Wait | None:
        """What a lane is told for which there is no trial: wait if work may come, otherwise go."""
        if self._stopping or self.reason is not None or not self._open:
            return None
        if self.spending.spent(self.elapsed) is not None or (self.spending.closed and not self.strategy.children):
            return None  # whoever runs a trial now replaces it himself if it fails
        return Wait()

    def _eta(self, elapsed: float) -> float | None:
        if self.finished:
            return 0.0
        hours = self.study.budget.hours
        left = None if hours is None else max(0.0, hours * 3600 - elapsed)
        here, planned, used = time.monotonic() - self._began, self.spending.planned, self.spending.used
        if planned is not None and self._ended_here and used:
            by_trials = max(0, planned - used) * here / self._ended_here
            return by_trials if left is None else min(left, by_trials)
        return left

    def _stop_row(self, reason: str, *, final: bool) -> None:
        """Why the study stops, and the coverage that it really reached."""
        if reason == "infeasible":
            self.note(None, self.spending.never_met(self._trials.values()))
        reached = {"coverage": self.spending.coverage, "wanted": self.study.budget.coverage}
        told = {"reason": reason, **reached, "final": final, **opening.limits(self.study), "elapsed": self.elapsed}
        self.ledger.append("stopped", told)
        if final:
            self.reason = reason

    # -- coming back ------------------------------------------------------------------------------------------------------

    def _replay(self) -> None:
        """Rebuilds counts and strategy from the rows, in their order; the ledger wins where the strategy differs."""
        snapshot = load_snapshot(self.folder, self.strategy)
        different = 0
        trials = self._trials  # with what proposals and ends say: not read twice
        self.spending.limit(Budget.model_validate(self.ledger.study()["study"]["budget"]))  # that of then, as sessions had it
        kinds = ["proposed", "started", "retry", "ended", "mode", "resumed"]
        for row in self.ledger.rows(kinds=kinds, bare=("proposed", "ended")):
            if row.kind == "mode":
                self._modes[row.body["signature"]] = row.body["mode"]
                continue
            if row.kind == "resumed":
                self._forget_lanes()
                if "budget" in row.body:
                    self.spending.limit(Budget.model_validate(row.body["budget"]))
                continue
            assert row.trial is not None
            if row.kind == "proposed":
                proposal = trials[row.trial].proposal
                if row.seq > snapshot:
                    self.strategy.closed = self.spending.closed
                    asked = self.strategy.ask()
                    different += asked is None or asked.stamped(proposal.seed or 0) != proposal
                self._proposed(row.trial, proposal)
            elif row.kind == "started":
                self._patience.replayed(row.trial, row.body.get("deadline"))
                self._release(row.trial)
                self._causes.pop(row.trial, None)
                self._holder[row.body["lane"]] = row.trial
                with contextlib.suppress(ValueError):
                    self._orphans.remove(row.trial)
            elif row.kind == "retry":
                self._again(row.trial, str(row.body["cause"]))
            else:
                trial = trials[row.trial]
                self._counted(trial)
                if row.seq > snapshot:
                    assert trial.outcome is not None
                    self.strategy.tell(trial.outcome)
        self.spending.limit(self.study.budget)
        self._earlier = self.ledger.elapsed
        if different:
            self.note(None, f"{different} of {self._numbers} proposals are not what the strategy asks now; the ledger's count")

    def _resume(self) -> None:
        """Every lane is gone: adopt letters, and hand out what was running first, oldest first."""
        for path in (self.folder / "letters").glob("[0-9]*.json"):
            if int(path.stem) not in self._trials:
                raise LedgerError(
                    f"{self.ledger.path} does not know trial {path.stem}, whose result is in {path}: the newest rows are lost "
                    f"(was the -wal file removed?). Nothing was started. Put the ledger and its -wal back from a backup."
                )
        with self._transaction() as told:
            self.ledger.append("resumed", opening.limits(self.study))
            for number in self._forget_lanes():
                if not self._adopted(number, told):
                    self._hung(number, told)
        for folder in (self.folder / "parcels").glob("[0-9]*"):
            self._prune(int(folder.name))
        self._after(told)

    def _forget_lanes(self) -> list[int]:
        """What lanes held is nobody's now. The trials, oldest first."""
        held = sorted(self._holder.values())
        self._holder.clear()
        self._orphans = deque(sorted({*self._orphans, *held}))
        self._causes |= dict.fromkeys(held, "resume")
        return held

    def _release(self, number: int) -> None:
        """Nobody holds a trial any more."""
        for lane in [lane for lane, held in self._holder.items() if held == number]:
            del self._holder[lane]

    # -- files ------------------------------------------------------------------------------------------------------------

    def _prune(self, number: int) -> None:
        """Keeps the last parcel of an ended trial, and the last two of a running one."""
        row = self._trials.get(number)
        if row is None or not row.checkpoints:
            return
        folder = self.folder / "parcels" / str(number)
        if row.ended:
            old = set(folder.glob("*.safetensors")) - {self._located(row.checkpoint or "")}
        else:
            old = {self._located(c) for c in row.checkpoints[:-2]}
        for parcel in old:
            if parcel.parent == folder and parcel.is_file():
                crashpoint("parcel.delete")
                parcel.unlink(missing_ok=True)

    def keep_status(self) -> None:
        """Writes status.json if it is due, for those who look from elsewhere; and says what they should hear of."""
        if self._broken is None and (trial := self._patience.unheard(self._holder)) is not None:
            path = stack_file(self.folder, trial, self._trials[trial].attempts).with_suffix(".silent.txt")
            what = f"no report for {worker.LEAST / 60:g} minutes, and no trial of the study has reported, so nothing ends it"
            self.note(trial, f"{what}: its stacks are in {path}; driver.trial_timeout = SECONDS sets a limit")
        self._write_status()

    def _write_status(self, *, force: bool = False) -> None:
        """Replaces status.json, at most once a second; it is for looking at, so a full disk does not end a study here."""
        now = time.monotonic()
        if not force and now - self._status_at < 1.0:
            return
        self._status_at = now
        if self._lock.closed or self.ledger.overtaken:
            return  # it is another's by now
        try:
            status_file.write(self.status(), self.folder)
        except OSError as error:
            log.warning("status.json cannot be written: %s", error)

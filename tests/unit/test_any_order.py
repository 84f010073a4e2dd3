"""Whatever lanes, workers and drivers do in whatever order: no trial is lost, and none ends twice."""
from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from directing import INNER, done, kill, line, study
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from metasearch.driver import letters
from metasearch.driver.director import Director
from metasearch.driver.messages import Assignment, Ending
from metasearch.testing.history import problems, results


class Lanes(RuleBasedStateMachine):
    """Lanes that hello, report, end, die and write letters, under a director that is killed at any time; a dict is the model."""

    inner: dict[str, Any] = INNER["random"]

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.folder = self.home / "t"
        self.wanted = study(7, method={"inner": self.inner}, driver={"max_errors": 1000})
        self.director = Director(self.wanted, self.folder)
        self.tokens = itertools.count()
        self.lanes: dict[str, tuple[str, Assignment]] = {}  # lane -> (process, what it works on)
        self.ended: dict[int, str] = {}

    def teardown(self) -> None:
        """Whatever happened, good lanes bring it to its end."""
        assert problems(self.folder, finished=False) == []
        for lane in "abc":
            self.hello(lane)
        while not self.director.finished:
            lane = min(self.lanes)
            process, said = self.lanes.pop(lane)
            more = self.director.next(lane, process, done(said))
            for idle in "abc":
                if isinstance(more, Assignment):
                    self.lanes[lane] = (process, more)
                if idle not in self.lanes:
                    lane, process = idle, str(next(self.tokens))
                    more = self.director.next(lane, process)
        self.director.close()
        assert problems(self.folder) == []
        for number, status in self.ended.items():
            assert results(self.folder)[number][0] == status
        shutil.rmtree(self.home)

    @rule(lane=st.sampled_from("abc"))
    def hello(self, lane: str) -> None:
        """A new process on a lane: it gets back what the lane held, if that has not ended."""
        process = str(next(self.tokens))
        said = self.director.next(lane, process)
        before = self.lanes.pop(lane, None)
        if isinstance(said, Assignment):
            assert said.trial not in self.ended, "a trial that has ended is run again"
            assert said.trial not in {held.trial for _, held in self.lanes.values()}, "two lanes work on one trial"
            if before is not None and before[1].trial not in self.ended and said.attempt == before[1].attempt + 1:
                assert said.trial == before[1].trial
            self.lanes[lane] = (process, said)

    @precondition(lambda self: self.lanes)
    @rule(data=st.data(), step=st.integers(1, 3))
    def report(self, data: st.DataObject, step: int) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        process, said = self.lanes[lane]
        assert self.director.report(lane, process, said.trial, (line(step),))

    @precondition(lambda self: self.lanes)
    @rule(
        data=st.data(), status=st.sampled_from(["done", "done", "diverged", "error"]),
        way=st.sampled_from(["next", "end", "lost"]),
    )
    def end(self, data: st.DataObject, status: Any, way: str) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        process, said = self.lanes.pop(lane)
        ending = done(said) if status == "done" else Ending(said.trial, status, reason="as drawn")
        letters.write(self.folder, ending)
        if way == "lost":
            return  # the process dies between its letter and its call
        self.ended[said.trial] = status
        if way == "end":
            self.director.end(lane, process, ending)
        else:
            more = self.director.next(lane, process, ending)
            if isinstance(more, Assignment):
                self.lanes[lane] = (process, more)

    @rule(all_die=st.booleans())
    def kill_the_director(self, all_die: bool) -> None:
        kill(self.director)
        if all_die:
            self.lanes.clear()
        self.director = Director(self.wanted, self.folder, lanes_live=not all_die)

    @invariant()
    def what_has_ended_stays_as_it_was(self) -> None:
        trials = self.director.ledger.trials()
        assert all(trials[number].status == status for number, status in self.ended.items())


class AshaLanes(Lanes):
    inner = INNER["asha"]


RARE = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # shrinking starts hundreds of directors
)
TestAnyOrder = Lanes.TestCase
TestAnyOrder.settings = RARE
TestAnyOrderOfAsha = AshaLanes.TestCase
TestAnyOrderOfAsha.settings = settings(RARE, max_examples=15)

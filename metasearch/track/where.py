"""`--where "learner.inner_lr < 0.1 and learner = maml"`: comparisons joined by `and`, as an MLflow filter and as a Python test.

A comparison is a key, one of < <= > >= = !=, and a number (60% is 0.6), a word or a text in quotes. A key is a column or else a
dimension; where one name is both, `config/norm` is the dimension. A row with no such value meets no comparison with it, `!=`
included: MLflow's filters are inner joins.
"""
from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from metasearch.plugins import did_you_mean
from metasearch.track.projection import is_number, said, spelled, tag

Kind = Literal["number", "string"]

NUMBERS = {  # of every row -> the metric that holds it in MLflow
    "score": "score", "low": "score_low", "high": "score_high", "episodes": "episodes", "params": "params", "flops": "flops",
    "seconds": "seconds", "step": "step",
}
TEXTS = {  # -> the tag
    "status": "status", "norm": "norm", "nets": "nets", "seed": "seed", "parent": "parent", "until": "until", "unit": "unit",
}
COLUMNS = frozenset({*NUMBERS, *TEXTS, "trial"})
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "!=": operator.ne,
}
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'[^']*'|"[^"]*")|(?P<op><=|>=|!=|==|<|>|=)|(?P<word>[^\s<>=!'"]+))""",
)
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


class WhereError(ValueError):
    """A filter that cannot be understood; says where and what would be right."""


@dataclass(frozen=True)
class Comparison:
    """key op value; `source` is where the value is found: a column, a dimension of the space, or trial."""

    key: str
    op: str
    value: float | str
    source: Literal["number", "text", "dim", "trial"]

    def holds(self, value: object) -> bool:
        """Does a row with this value (None: it has none) meet the comparison?"""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return False
        if isinstance(self.value, float):
            return is_number(value) and _OPERATORS[self.op](float(value), self.value)  # type: ignore[arg-type]
        return _OPERATORS[self.op](said(value), self.value)


def parse(text: str, dims: Mapping[str, set[str]]) -> list[Comparison]:
    """The comparisons of a filter. dims: the dimensions that trials have had so far -> the kinds of their values.

    Raises WhereError for a key that is not known (with the nearest known one) and for everything that is no comparison.
    """
    tokens = _tokens(text)
    found, at = [], 0
    while at < len(tokens):
        if at + 3 > len(tokens):
            raise WhereError(f"'{text}' ends in the middle of a comparison. Write: KEY < NUMBER and KEY = WORD")
        (kind, key), (middle, op), (last, value) = tokens[at : at + 3]
        if kind != "word" or middle != "op" or last == "op":
            raise WhereError(f"'{key} {op} {value}' is no comparison. Write KEY OP VALUE, with an operator < <= > >= = or !=")
        found.append(_comparison(key, "=" if op == "==" else op, value, quoted=last == "text", dims=dims))
        at += 3
        if at < len(tokens):
            if tokens[at] == ("word", "or"):
                raise WhereError("comparisons are joined by `and`; there is no `or`: ask twice")
            if tokens[at][0] != "word" or tokens[at][1].lower() != "and" or at + 1 == len(tokens):
                raise WhereError(f"`and` and another comparison must follow, but got '{tokens[at][1]}' in '{text}'")
            at += 1
    if not found:
        raise WhereError("the filter is empty. Write KEY OP VALUE, for example: score > 0.5")
    return found


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise WhereError(f"'{text[at:].strip()[:40]}' cannot be read. Values are numbers, words, or texts in quotes")
        kind = str(match.lastgroup)
        value = match[kind]
        tokens.append((kind, value[1:-1] if kind == "text" else value))
        at = match.end()
    return tokens


def _comparison(key: str, op: str, value: str, *, quoted: bool, dims: Mapping[str, set[str]]) -> Comparison:
    number = None if quoted else _number(value)
    column = key in COLUMNS
    key = key.removeprefix("config/")  # what the column is called
    if not column and key in dims:
        if number is not None and "number" in dims[key]:
            return Comparison(key, op, number, "dim")
        return Comparison(key, _equality(key, op, value), value, "dim")
    if not column:
        raise WhereError(f"'{key}' is no key of this leaderboard.{did_you_mean(key, {*dims, *COLUMNS})}")
    if key in NUMBERS:
        if number is None:
            raise WhereError(f"'{key}' is a number, but it is compared with '{value}'")
        return Comparison(key, op, number, "number")
    return Comparison(key, _equality(key, op, value), value, "text" if key in TEXTS else "trial")


def _equality(key: str, op: str, value: str) -> str:
    if op not in ("=", "!="):
        raise WhereError(f"'{key} {op} {value}': texts are compared with = and != only")
    return op


def _number(value: str) -> float | None:
    try:
        number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        return None
    if not math.isfinite(number):
        raise WhereError(f"'{value}' is no number to compare with")
    return number


def mlflow_filter(comparisons: list[Comparison], study: str, *, negated: bool) -> str:
    """The same as an MLflow filter. negated: scores of this study are shown with the other sign (an error such as mse)."""
    return " and ".join(_clause(c, study, negated) for c in comparisons)


def _clause(c: Comparison, study: str, negated: bool) -> str:
    if c.source == "dim":
        if isinstance(c.value, float):
            return f"metrics.`{spelled(f'config/{c.key}')}` {c.op} {_digits(c.value)}"
        return f"params.`{spelled(c.key)}` {c.op} {_quoted(c.value)}"
    if c.source == "number":
        assert isinstance(c.value, float)
        metric, op, value = NUMBERS[c.key], c.op, c.value
        if negated and c.key in ("score", "low", "high"):
            metric = {"low": "score_high", "high": "score_low"}.get(c.key, metric)
            op, value = _TURNED.get(op, op), -value
        return f"metrics.`{metric}` {op} {_digits(value)}"
    if c.source == "trial":
        return f"tags.`{tag('trial')}` {c.op} {_quoted(trial_name(c, study))}"
    return f"tags.`{tag(TEXTS[c.key])}` {c.op} {_quoted(str(c.value))}"


def trial_name(c: Comparison, study: str) -> str:
    """`trial = 12` and `trial = NAME/12` mean the same."""
    return str(c.value) if "/" in str(c.value) else f"{study}/{c.value}"


def _digits(number: float) -> str:
    """As MLflow's filters read it: they know 1e-05, but not 1e+16."""
    return repr(number).replace("e+", "e")


def _quoted(value: str) -> str:
    for quote in "'\"":
        if quote not in value and "\n" not in value:
            return f"{quote}{value}{quote}"
    raise WhereError(f"{value!r} has both kinds of quotes, which no filter can hold")

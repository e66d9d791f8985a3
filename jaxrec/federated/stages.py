"""A step, cut where it sums over all clients.

    stage 0 -> parts of sums -> (network) -> totals -> stage 1 -> parts -> ... -> results

Each party runs the same step on the clients that it holds. `cut` traces the step once and sorts its
operations by how many sums their inputs have been through: what depends on none is stage 0, what
depends on the first ones stage 1, and so on. Sums that do not depend on each other share an
exchange. A party computes only what its wanted results and its parts of sums need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var

from jaxrec.federated.divided import Federation, divided_among, sum_p
from jaxrec.types import SettingError


class Stage(NamedTuple):
    """A piece of a function, between two exchanges of sums."""

    compute: Callable[..., list[jax.Array]]  # arrays that it knows -> what it leaves
    parts: slice  # of what it leaves: its parts of the next sums
    results: slice  # the wanted results, as far as they are known
    kept: slice  # what the next stage knows beside the totals


class Stages(NamedTuple):
    """A function in pieces; see `cut`."""

    stages: tuple[Stage, ...]
    sums: tuple[tuple[jax.ShapeDtypeStruct, ...], ...]  # of each exchange
    needed: int  # exchanges that the wanted results depend on
    finish: Callable[[list[jax.Array]], Any]  # the results' leaves -> the results
    given: tuple[jax.ShapeDtypeStruct, ...]  # the arguments' leaves
    reads: tuple[bool, ...]  # whether each of them is read at all

    def begin(self, *args: Any) -> Progress:
        """Compute the first stage.

        Raises ValueError for arguments of other shapes than those that the function was cut for.
        """
        leaves = jax.tree.leaves(args)
        _check(leaves, self.given, "arguments")
        return Progress(self, 0, self.stages[0].compute(*leaves))


class Progress(NamedTuple):
    """Where a party stands in a function."""

    whole: Stages
    number: int  # of the stage that was computed last
    left: list[jax.Array]

    @property
    def parts(self) -> list[jax.Array]:
        """This party's parts of the next sums; none where there are no more sums."""
        return self.left[self.whole.stages[self.number].parts]

    @property
    def due(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of the next sums; none where there are no more."""
        return self.whole.sums[self.number] if self.number < len(self.whole.sums) else ()

    @property
    def done(self) -> bool:
        """Whether the results are known."""
        return self.number >= self.whole.needed

    @property
    def results(self) -> Any:
        """The function's wanted results, once they are known."""
        if not self.done:
            raise ValueError(f"the results need {self.whole.needed} sums, not {self.number}")
        return self.whole.finish(self.left[self.whole.stages[self.number].results])

    def go_on(self, totals: Sequence[Any]) -> Progress:
        """Compute the next stage, from the sums over all clients.

        Raises ValueError where they are not of the shapes that are due.
        """
        _check(totals, self.whole.sums[self.number], "sums")
        kept = self.left[self.whole.stages[self.number].kept]
        number = self.number + 1
        return Progress(self.whole, number, self.whole.stages[number].compute(*kept, *totals))


def cut(
    function: Callable[..., Any],
    federation: Federation,
    *args: Any,
    wanted: Callable[[Any], Any] = lambda result: result,
) -> Stages:
    """Cut a function at its sums over all clients.

    Args:
      function: one that every party calls. Sums that its results do not depend on are left out.
      federation: the clients whose sums they are.
      args: trees of arrays, or of their shapes, that the function is to be called with.
      wanted: the part of the results that this party wants. Others are not computed here.

    Raises SettingError where a sum stands in a loop or in a branch.
    """
    leaves, structure = jax.tree.flatten(args)
    shape = None

    def flat(*leaves: Any) -> tuple[list[Any], list[Any]]:
        nonlocal shape
        results = function(*structure.unflatten(leaves))
        found, shape = jax.tree.flatten(wanted(results))
        return found, jax.tree.leaves(results)

    with divided_among(federation):
        traced, (found, _) = jax.make_jaxpr(flat, return_shape=True)(*leaves)
    program = traced.jaxpr
    needed, _ = _needed(program.eqns, program.outvars)
    for eqn in needed:
        if eqn.primitive is not sum_p and sum_p.name in str(eqn):
            raise SettingError(
                f"a sum over all clients stands inside of {eqn.primitive.name}; where clients have "
                "machines of their own, sums stand outside of loops and branches"
            )
    constants = dict(zip(program.constvars, traced.consts, strict=True))
    results = program.outvars[: len(found)]
    return _in_stages(needed, program.invars, constants, results, shape)


def _in_stages(
    eqns: Sequence[JaxprEqn],
    given: Sequence[Var],
    constants: dict[Var, Any],
    results: Sequence[Any],
    structure: Any,
) -> Stages:
    """Sort the operations of a program, whose sums are all at its top level, by stage."""
    level: dict[Var, int] = dict.fromkeys([*given, *constants], 0)
    work: list[list[JaxprEqn]] = [[]]
    sums: list[list[JaxprEqn]] = [[]]
    for eqn in eqns:
        at = max((level[v] for v in _variables(eqn.invars)), default=0)
        is_sum = eqn.primitive is sum_p
        (sums if is_sum else work)[at].append(eqn)
        level |= dict.fromkeys(eqn.outvars, at + is_sum)
        if len(work) == at + is_sum:
            work.append([])
            sums.append([])
    parts = [[v for eqn in exchange for v in eqn.invars] for exchange in sums]
    totals = [[v for eqn in exchange for v in eqn.outvars] for exchange in [[], *sums]]
    # Backwards: what a stage computes, and what the one before it must leave for that.
    here: list[list[JaxprEqn]] = [[] for _ in work]
    kept: list[list[Var]] = [[] for _ in work]
    asked = _variables(results)
    for at in reversed(range(len(work))):
        here[at], asked = _needed(work[at], [*asked, *parts[at]])
        asked = [v for v in asked if v not in constants and v not in set(totals[at])]
        if at:
            kept[at - 1] = asked
    stages, known = [], list(given)
    for at, ours in enumerate(here):
        reached = [v for v in results if isinstance(v, Literal) or level[v] <= at]
        groups = [parts[at], reached, kept[at]]
        ends = np.cumsum([0, *map(len, groups)]).tolist()
        left = [v for group in groups for v in group]
        slices = [slice(*pair) for pair in pairwise(ends)]
        stages.append(Stage(_program(ours, constants, known, left), *slices))
        known = [*kept[at], *(totals[at + 1] if at + 1 < len(work) else [])]
    depth = max((level[v] for v in _variables(results)), default=0)
    shapes = tuple(map(_shapes, parts[:-1]))
    reads = tuple(v in set(asked) for v in given)
    return Stages(tuple(stages), shapes, depth, structure.unflatten, _shapes(given), reads)


def _needed(eqns: Sequence[JaxprEqn], asked: Iterable[Any]) -> tuple[list[JaxprEqn], list[Var]]:
    """The operations that what is `asked` needs, and what they and it need beside."""
    wanted = dict.fromkeys(_variables(asked))  # in order: programs are alike in every process
    needed = []
    for eqn in reversed(eqns):
        if any(v in wanted for v in eqn.outvars):
            needed.append(eqn)
            wanted |= dict.fromkeys(_variables(eqn.invars))
    made = {v for eqn in needed for v in eqn.outvars}
    return needed[::-1], [v for v in wanted if v not in made]


def _program(
    eqns: Sequence[JaxprEqn],
    constants: dict[Var, Any],
    given: Sequence[Var],
    asked: Sequence[Var | Literal],
) -> Callable[..., list[jax.Array]]:
    """The compiled function of the variables `given` that returns those `asked` for."""

    @jax.jit
    def compute(*values):
        found = constants | dict(zip(given, values, strict=True))
        for eqn in eqns:
            inputs = [_value(v, found) for v in eqn.invars]
            with eqn.ctx.manager:
                made = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            made = made if eqn.primitive.multiple_results else [made]
            found |= dict(zip(eqn.outvars, made, strict=True))
        return [_value(v, found) for v in asked]

    return compute


def _shapes(variables: Iterable[Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in variables)


def _check(arrays: Sequence[Any], due: Sequence[jax.ShapeDtypeStruct], what: str) -> None:
    told = [f"{array.dtype}{list(array.shape)}" for array in arrays]
    wanted = [f"{shape.dtype}{list(shape.shape)}" for shape in due]
    if told != wanted:
        raise ValueError(f"the {what} are {', '.join(told)}, and {', '.join(wanted)} are due")


def _variables(values: Iterable[Any]) -> list[Var]:
    return [v for v in values if not isinstance(v, Literal)]


def _value(variable: Any, found: dict[Var, Any]) -> Any:
    return variable.val if isinstance(variable, Literal) else found[variable]

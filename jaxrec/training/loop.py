"""The only training loop: chunks of rounds on the device, evaluation, early stop, checkpoint.

A chunk is all rounds between two evaluations as one compiled `lax.scan` with a donated state.
Round t draws from `fold_in(key, t)`, so a run that is cut into pieces is the same run.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from jaxrec import files
from jaxrec.evaluation import names
from jaxrec.evaluation.evaluator import Evaluation
from jaxrec.federated import privacy_ledger
from jaxrec.training import checkpoint, launch
from jaxrec.training.compiled_rounds import Advanced, advancer
from jaxrec.training.job import Job, Progress
from jaxrec.training.progress import Line
from jaxrec.training.run_folder import save
from jaxrec.training.timing import Seconds, timed

SAVING_SHARE = 0.1  # of the time of a run; a save that would take more waits for a later evaluation


def fit(
    job: Job,
    state: Any,
    best: checkpoint.Arrays | None,
    reached: Progress,
    rows: list[dict[str, Any]],
) -> tuple[Progress, checkpoint.Arrays, Any]:
    """Chunk, evaluate and save until rounds or patience run out; appends to `rows`.

    Returns how far the run has come, the state of the best round and that of the last one.

    Raises:
      FloatingPointError: a metric, the state or a score is not finite.
      KeyboardInterrupt: a signal asked to stop; the state is saved.
    """
    out, prepared = job.out, job.prepared
    advance = advancer(job, prepared.shardings(state))
    evaluate = job.evaluator(job.method, prepared.valid, lists=False, devices=prepared.mesh)
    began, saved, saving = time.perf_counter(), reached.round, 0.0
    with Line(job.name, job.rounds, shown=job.progress) as line, _asked_to_stop() as asked:
        while not job.done(reached):
            try:
                advanced = advance(state, reached.round, job.next_evaluation(reached))
                state = advanced.state
                evaluation, evaluating = timed(evaluate, state, prepared.data)
            except FloatingPointError as error:
                kept = f"; round {saved} is saved in {out / 'checkpoint'}" if out and saved else ""
                at = f"{job.name}, rounds {reached.round + 1} to {job.next_evaluation(reached)}"
                raise FloatingPointError(f"{at}: {error}{kept}") from None
            name = names.measured(job.run.monitor, evaluation.means) or job.run.monitor
            value = evaluation.means[name]
            # What one process decides, all do: they gather together what the first one saves.
            better, stops, folder, due = launch.any_process(
                reached.best is None or value > reached.best,
                asked.is_set(),
                bool(out),
                bool(out) and saving <= SAVING_SHARE * (time.perf_counter() - began),
            )
            reached = _moved(job, reached, advanced, value if better else None, evaluating)
            rows.append(_row(job, reached, evaluation, advanced.metrics))
            if out:
                files.append_row(out / "metrics.jsonl", rows[-1])
            if job.track:
                job.track(job.name, rows[-1])
            line.update(reached, name, value)
            saves = due or (folder and (stops or job.done(reached)))
            arrays = checkpoint.to_arrays(state) if better or saves else None
            best = arrays if better else best
            if saves:
                saved = reached.round
                saving += sum(timed(save, job, reached, arrays, best)[1]) if out else 0.0
                launch.barrier(f"round {saved} is saved")
                stops |= launch.any_process(asked.is_set())[0]
            if stops:
                raise KeyboardInterrupt(f"{job.name}: stopped after round {reached.round}")
    assert best is not None  # a run has at least one round, or resumes after one
    return reached, best, state


def _moved(
    job: Job, reached: Progress, advanced: Advanced, best: float | None, evaluating: Seconds
) -> Progress:
    """How far the run has come after some rounds; `best` is their value where none was higher."""
    stop, better = job.next_evaluation(reached), best is not None
    ledger = job.charged(reached.ledger, advanced.attendance, stop - reached.round)
    return Progress(
        round=stop,
        best=best if better else reached.best,
        best_round=stop if better else reached.best_round,
        stale=0 if better else reached.stale + 1,
        ledger=ledger,
        compile=reached.compile + advanced.seconds.compiling + evaluating.compiling,
        train=reached.train + advanced.seconds.running,
        evaluate=reached.evaluate + evaluating.running,
    )


def _row(
    job: Job, reached: Progress, evaluation: Evaluation, metrics: checkpoint.Arrays
) -> files.Row:
    """A line of metrics.jsonl."""
    return {
        "round": reached.round,
        **{f"valid/{name}": value for name, value in evaluation.means.items()},
        **{f"train/{name}": values.mean(0).tolist() for name, values in metrics.items()},
        "bytes": reached.ledger.total,
        "bytes/up": reached.ledger.up,
        "bytes/down": reached.ledger.down,
        **privacy_ledger.row(job.config, job.method, reached.round),
        "seconds": reached.compile + reached.train + reached.evaluate,
    }


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def ask(*_: object) -> None:
        asked.set()
        as_before()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        as_before()

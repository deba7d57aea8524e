"""A run that has been told to metrics.jsonl, told to a tracker as well."""

from __future__ import annotations

from collections.abc import Iterable

from dtl.core.errors import RunFailed
from dtl.prepare.preparation import check_trackers
from dtl.run.folder import RunFolder


def send_to_trackers(folder: RunFolder, names: Iterable[str]) -> list[str]:
    """Send every line of metrics.jsonl, as a new run there; the names of the trackers. Raises
    DtlError where one is not installed, or does not take it."""
    chosen = list(dict.fromkeys(names))
    check_trackers(chosen)
    from dtl.engine.trackers import open_tracker
    from dtl.train.trackers import send_lines

    for name in chosen:
        try:
            send_lines(
                name, folder, folder.read_metrics(), open_tracker=open_tracker, as_new_run=True
            )
        except Exception as fault:
            reason = " ".join(str(fault).split())[:300]
            raise RunFailed.of(
                f"tracker {name}",
                f"failed ({type(fault).__name__}: {reason})",
                "metrics.jsonl has all: fix it and send again",
            ) from fault
    return chosen

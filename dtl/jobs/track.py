"""Send the log of a run (metrics.jsonl) to trackers."""

from __future__ import annotations

from collections.abc import Iterable

from dtl.core.errors import RunFailed, shorten_message
from dtl.prepare.prepared_run import check_trackers
from dtl.run.folder import RunFolder


def send_to_trackers(folder: RunFolder, names: Iterable[str]) -> list[str]:
    """Send every line of metrics.jsonl to each tracker, as a new run there; return their names.

    Raises DtlError where a tracker is not installed, and RunFailed where one fails.
    """
    trackers = list(dict.fromkeys(names))
    check_trackers(trackers)
    from dtl.engine.accelerate_trackers import open_tracker
    from dtl.train.tracker_queue import send_lines

    for name in trackers:
        try:
            send_lines(
                name, folder, folder.read_metrics(), open_tracker=open_tracker, as_new_run=True
            )
        except Exception as fault:
            reason = shorten_message(fault)
            raise RunFailed.of(
                f"tracker {name}",
                f"the upload failed ({type(fault).__name__}: {reason})",
                "fix the reason and send again; metrics.jsonl has all lines",
            ) from fault
    return trackers

"""Faults inside a process of a trial, loaded through its PYTHONPATH: dtl itself has no hooks.

What the environment requests for is done: `CHAOS_CRASH_AT` (die at the n-th disk call of one save),
`CHAOS_NAN_STEPS` (a loss that is not finite on one rank).
"""

import os
import sys

if "CHAOS_CRASH_AT" in os.environ:
    import crash_points

    crash_points.install()
if "CHAOS_NAN_STEPS" in os.environ and os.environ.get("RANK") == os.environ["CHAOS_NAN_RANK"]:
    import nan_loss

    sys.meta_path.insert(0, nan_loss.AfterImport())

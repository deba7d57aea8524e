"""A loss that is not finite, on one rank at some steps: NaN is passed to the engine's backward."""

import importlib.util
import os
import sys


class AfterImport:
    """Wrap the engines of dtl once they are imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "dtl.engine.start":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_wrap(module):
            load(module)
            for engine in (module.DdpEngine, module.DeepSpeedEngine):
                _wrap(engine)

        spec.loader.exec_module = load_and_wrap
        return spec


def _wrap(engine) -> None:
    """Count the steps, and corrupt the loss of the chosen ones."""
    chosen = {int(step) for step in os.environ["CHAOS_NAN_STEPS"].split(",")}
    backward, step = engine.backward, engine.step
    done = {"steps": 0}

    def corrupted(self, loss_sum, *, targets):
        factor = float("nan") if done["steps"] + 1 in chosen else 1.0
        return backward(self, loss_sum * factor, targets=targets)

    def count_values(self):
        done["steps"] += 1
        return step(self)

    engine.backward, engine.step = corrupted, count_values

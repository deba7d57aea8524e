"""The keys of a config: one frozen record for each section."""

from dtl.config.schema.base import ConfigFault, Record, raise_config_faults
from dtl.config.schema.batch_size import BatchSize
from dtl.config.schema.compare import Compare
from dtl.config.schema.data import Data, Source, Subsample
from dtl.config.schema.layout import Layout
from dtl.config.schema.model import Model
from dtl.config.schema.optim import Optim
from dtl.config.schema.plugins import Phase, PluginConfig, StrategyConfig, TaskConfig
from dtl.config.schema.run import Run
from dtl.config.schema.run_config import RunConfig
from dtl.config.schema.train import LossSpikeOptions, Train

__all__ = [
    "BatchSize",
    "Compare",
    "ConfigFault",
    "Data",
    "Layout",
    "LossSpikeOptions",
    "Model",
    "Optim",
    "Phase",
    "PluginConfig",
    "Record",
    "Run",
    "RunConfig",
    "Source",
    "StrategyConfig",
    "Subsample",
    "TaskConfig",
    "Train",
    "raise_config_faults",
]

"""The `dtl` command: one file per command group."""

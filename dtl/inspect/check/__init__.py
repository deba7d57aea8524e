"""The data report of `dtl check`."""

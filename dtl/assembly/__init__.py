"""The task and the strategies of a config, combined and checked against each other."""

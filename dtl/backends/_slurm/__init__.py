"""Slurm: site files, job scripts and Slurm's commands."""

"""Engines: training through Accelerate and DeepSpeed, which only this folder imports."""

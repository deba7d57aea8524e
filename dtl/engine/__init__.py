"""The only folder that imports Accelerate and DeepSpeed."""

"""The runtimes: each runs the same Metal text somewhere else."""

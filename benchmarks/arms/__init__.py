"""The arms: each is a program, `python -m benchmarks.arms.NAME JOB.json RESULT.json`."""

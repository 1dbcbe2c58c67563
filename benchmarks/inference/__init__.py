"""The frozen engines beside their opponents: one network, one run, on a CPU.

    PYTHONPATH=benchmarks python -m inference [--quick | --peers]

`networks`, `opponents`, `plain`, `peers` and `engines` make what is compared, `timing` and `memory`
measure it, `cases` does both for one network, `plan` says for which; `results`, `report` and
`quick` show it. `gpu.py` beside this package shares all of that.
"""

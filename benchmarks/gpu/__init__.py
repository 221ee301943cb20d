"""The benchmarks for GPUs: `python benchmarks/gpu/run.py --output FOLDER`, or all checks with scripts/gpu_check.sh.

`--device cpu --small` goes through the same code with sizes and clocks for a CPU, to test the harness; its figures say
nothing about a GPU.
"""

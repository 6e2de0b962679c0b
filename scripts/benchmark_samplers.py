"""Benchmark samplers over step counts: python scripts/benchmark_samplers.py checkpoint=data/checkpoints/pusht_small"""

from diffpolicy.commands.benchmark_samplers import main

if __name__ == "__main__":
    main()

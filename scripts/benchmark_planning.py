"""Benchmark the cost of safety per plan: python scripts/benchmark_planning.py checkpoint=RUN/checkpoints/last"""

from diffpolicy.commands.benchmark_planning import main

if __name__ == "__main__":
    main()

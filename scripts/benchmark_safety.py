"""Benchmark safety on executed motion: python scripts/benchmark_safety.py checkpoint=RUN/checkpoints/last"""

from diffpolicy.commands.benchmark_safety import main

if __name__ == "__main__":
    main()

"""Benchmark the rate and memory of reading image batches from disk: python scripts/benchmark_streaming.py"""

from diffpolicy.commands.benchmark_streaming import main

if __name__ == "__main__":
    main()

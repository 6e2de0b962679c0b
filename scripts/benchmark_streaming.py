"""Batches of images a second read from disk, and the memory that takes: python scripts/benchmark_streaming.py"""

from diffpolicy.commands.benchmark_streaming import main

if __name__ == "__main__":
    main()

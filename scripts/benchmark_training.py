"""Benchmark optimiser steps per second against a plain loop: python scripts/benchmark_training.py"""

from diffpolicy.commands.benchmark_training import main

if __name__ == "__main__":
    main()

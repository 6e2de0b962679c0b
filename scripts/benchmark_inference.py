"""Benchmark the time of a chunk against other libraries: python scripts/benchmark_inference.py peer_python=PYTHON"""

from diffpolicy.commands.benchmark_inference import main

if __name__ == "__main__":
    main()

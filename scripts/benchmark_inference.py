"""Time of a chunk, against others: python scripts/benchmark_inference.py peer_python=PYTHON"""

from diffpolicy.commands.benchmark_inference import main

if __name__ == "__main__":
    main()

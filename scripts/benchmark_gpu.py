"""Everything worth measuring on a GPU, in minutes: python scripts/benchmark_gpu.py"""

from diffpolicy.commands.benchmark_gpu import main

if __name__ == "__main__":
    main()

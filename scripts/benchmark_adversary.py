"""Attack the safety layer and count what gets through: python scripts/benchmark_adversary.py"""

from diffpolicy.commands.benchmark_adversary import main

if __name__ == "__main__":
    main()

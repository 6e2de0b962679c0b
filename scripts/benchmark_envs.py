"""Benchmark env steps per CPU second against gym-pusht: python scripts/benchmark_envs.py peer_python=PYTHON"""

from diffpolicy.commands.benchmark_envs import main

if __name__ == "__main__":
    main()

"""Evaluate a checkpoint: python scripts/evaluate_policy.py checkpoint=RUN/checkpoints/last episodes=50"""

from diffpolicy.commands.evaluate_policy import main

if __name__ == "__main__":
    main()

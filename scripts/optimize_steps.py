"""Optimise the steps of DDIM for a checkpoint: python scripts/optimize_steps.py checkpoint=FOLDER steps=5 output=NEW"""

from diffpolicy.commands.optimize_steps import main

if __name__ == "__main__":
    main()

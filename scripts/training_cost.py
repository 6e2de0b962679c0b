"""Measure a training step against the machine's matrix products: python scripts/training_cost.py model=unet"""

from diffpolicy.commands.training_cost import main

if __name__ == "__main__":
    main()

"""What a step of training costs, beside the machine's rate of products: python scripts/training_cost.py model=unet"""

from diffpolicy.commands.training_cost import main

if __name__ == "__main__":
    main()

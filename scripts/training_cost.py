"""What a step of training costs, and how near it comes to this machine's rate of matrix products."""

from diffpolicy.commands.training_cost import main

if __name__ == "__main__":
    main()

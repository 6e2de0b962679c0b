"""Train a policy: python scripts/train_policy.py task=pusht"""

from diffpolicy.commands.train_policy import main

if __name__ == "__main__":
    main()

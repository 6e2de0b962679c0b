"""Export a policy: python scripts/export_policy.py checkpoint=RUN/checkpoints/last output=FOLDER"""

from diffpolicy.commands.export_policy import main

if __name__ == "__main__":
    main()

"""Record demonstrations from a scripted expert: python scripts/generate_demos.py task=pusht episodes=1750"""

from diffpolicy.commands.generate_demos import main

if __name__ == "__main__":
    main()

"""Import a policy of another library: python scripts/import_policy.py source=FILE_OR_FOLDER output=FOLDER"""

from diffpolicy.commands.import_policy import main

if __name__ == "__main__":
    main()

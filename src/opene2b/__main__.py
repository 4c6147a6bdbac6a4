"""`python -m opene2b`: the command line."""

from opene2b.cli.main import main

if __name__ == "__main__":
    main()

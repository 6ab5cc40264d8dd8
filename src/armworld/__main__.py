"""`python -m armworld` is the `armworld` command."""

from armworld.cli import main

if __name__ == "__main__":
    main()

"""``python -m lambdanets``, which works as the command does."""

from lambdanets_cli import main

if __name__ == "__main__":
    main()

"""``python -m lambdanets_cli``."""

from lambdanets_cli import main

if __name__ == "__main__":
    main()

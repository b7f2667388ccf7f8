"""`python -m caltune`."""

from caltune.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

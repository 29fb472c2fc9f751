"""``python -m widefield`` is ``widefield``; torchrun needs a module."""

from widefield.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

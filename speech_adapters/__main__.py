"""``python -m speech_adapters`` is ``speech-adapters``."""

from speech_adapters.cli import main

if __name__ == "__main__":
    main()

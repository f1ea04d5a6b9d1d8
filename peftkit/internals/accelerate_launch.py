"""`accelerate launch` without its list of default values: ``python -m`` this module.

Accelerate 1.15 lists the values that it was not given, in six lines at each start, and offers no
way to choose them once for machines with and without GPUs. The list is shown where it says that
several GPUs were found. If another version logs it elsewhere, it is seen again.
"""

import logging


def _is_worth_showing(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return "values were not passed" not in text or "More than one GPU" in text


def main() -> None:
    """Run `accelerate launch` with this process's command line."""
    from accelerate.commands.launch import main as launch

    logging.getLogger("accelerate.commands.launch").addFilter(_is_worth_showing)
    launch()


if __name__ == "__main__":
    main()

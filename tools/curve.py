"""Draw the loss curves of a training run.

python -m tools.curve OUTPUT/losses.jsonl curve.png [loss validation/psnr ...]
"""

import sys

from common.errors import InputError
from common.training.curves import plot_losses


def main(arguments: list[str]) -> None:
    """Two files, then the scalars to draw; none given means all that every step has."""
    if len(arguments) < 2 or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").strip(), file=sys.stderr if not arguments else sys.stdout)
        sys.exit(0 if arguments and arguments[0] in ("-h", "--help") else 2)
    jsonl, png, *keys = arguments
    try:
        plot_losses(jsonl, png, keys)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(png)


if __name__ == "__main__":
    main(sys.argv[1:])

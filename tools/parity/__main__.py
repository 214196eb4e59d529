"""python -m tools.parity golden FOLDER --tree ms|pt [--case GLOB] [--json FILE]

Exit code 0: everything selected passed; 1: something differs or is not implemented; 2: could not run.
"""

import argparse
import sys

from common.files import write_json

from . import goldens
from .golden import CaseResult, check_case
from .tree import Tree


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.parity", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    golden = commands.add_parser(
        "golden", help="compare one tree with recorded computations of the reference"
    )
    golden.add_argument("folder", help="manifest.json and safetensors files")
    golden.add_argument("--tree", choices=("ms", "pt"), required=True)
    golden.add_argument("--case", default="*", help="glob of case names")
    golden.add_argument("--json", help="write the measurements to this file")
    golden.set_defaults(run=run_golden)
    arguments = parser.parse_args()
    try:
        return arguments.run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_golden(arguments: argparse.Namespace) -> int:
    tree, results = Tree(arguments.tree), []
    names = goldens.select(arguments.folder, arguments.case)
    if not names:
        raise ValueError(f"golden: no case in {arguments.folder} matches {arguments.case!r}")
    for name in names:
        results.append(check_case(tree, arguments.folder, name))
        print(describe(results[-1]), flush=True)
    passed = sum(r.passed for r in results)
    absent = sum(not r.implemented for r in results)
    print(f"{passed} passed, {len(results) - passed - absent} failed, {absent} not implemented")
    if arguments.json:
        write_json(arguments.json, [as_record(r) for r in results])
    return 0 if passed == len(results) else 1


def describe(result: CaseResult) -> str:
    """A case as text: one line, and one more for each output."""
    if not result.implemented:
        return f"{result.name}: not implemented"
    lines = [f"{result.name}: {'pass' if result.passed else 'FAIL'} ({result.seconds:.1f} s)"]
    for v in result.verdicts:
        d = v.difference
        numbers = f"max_abs {d.max_abs:.1e}  rel_l2 {d.relative_l2:.1e}  cos {d.cosine:.7f}" if d else ""
        lines.append(f"  {v.verdict:12} {v.output:42} {numbers}  tol {v.tolerance:.1e}  {v.note}".rstrip())
    return "\n".join(lines)


def as_record(result: CaseResult) -> dict:
    """A case as JSON."""
    outputs = [
        {**v._asdict(), "difference": v.difference._asdict() if v.difference else None}
        for v in result.verdicts
    ]
    state = "pass" if result.passed else "fail" if result.implemented else "not implemented"
    return {"case": result.name, "state": state, "seconds": round(result.seconds, 2), "outputs": outputs}


if __name__ == "__main__":
    sys.exit(main())

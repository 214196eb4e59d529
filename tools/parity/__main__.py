"""Parity: do both trees compute what the reference computes, and the same as each other?

Exit code 0: everything selected passed; 1: something differs or is not implemented; 2: could not run.
`compare` judges the stages that both recordings have, and names the others first.
"""

import argparse
import functools
import importlib.util
import sys
from pathlib import Path

from common.checkpoint import StoredWeights
from common.cli import prepare_folder
from common.config import build, load
from common.errors import InputError
from common.files import read_json, whole_file, write_json
from common.host import kind_of
from common.models import TransformerConfig, VAEConfig

from . import recording, report
from .audit import audit_keys, audit_tensors, sha256
from .bisect import PASSES, bisect
from .compare import Comparison, check_oracle, compare, differing_settings, unshared_stages
from .difference import FAIL
from .dump import dump
from .golden import CaseResult, check, summary
from .modes import modes
from .plan import DumpConfig
from .selftest import FAULTS, selftest
from .tree import Tree, exact_tree


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run; the exit code."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)  # key=value may stand anywhere
    if any("=" not in word or word.startswith("-") for word in rest) or (rest and "config" not in arguments):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.override = rest
    try:
        return arguments.run(arguments)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m tools.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, run, help: str, *positional: str, tree: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        for word in positional:
            sub.add_argument(word)
        if tree:
            sub.add_argument("--tree", choices=("ms", "pt"), required=True)
        if name != "dump":
            sub.add_argument("--json", help="write the measurements to this file")
        sub.set_defaults(run=run)
        return sub

    sub = command(
        "golden", run_golden, "one tree against recorded computations of the reference", "folder", tree=True
    )
    sub.add_argument("--case", default="*", help="glob of case names")
    sub = command(
        "dump", run_dump, "record what one tree computes; key=value changes the config", "config", tree=True
    )
    sub.add_argument("--out", required=True, help="safetensors file to write")
    sub = command("compare", run_compare, "two recordings, tensor by tensor", "a", "b")
    sub.add_argument("--oracle", help="a float64 recording of the pt tree; then A must be as good as B")
    sub.add_argument("--select", default="*", help="glob of tensor names")
    sub.add_argument("--html", help="write a report to this file")
    sub = command(
        "bisect", run_bisect, "find the first module that is wrong on its own (needs both trees)", "config"
    )
    sub.add_argument("--a", choices=("ms", "pt"), default="ms", help="the tree that is trusted")
    command("modes", run_modes, "one tree against itself, run in two ways", "config", tree=True)
    command(
        "selftest",
        run_selftest,
        "plant known faults; each must be found and named (needs both trees)",
        "config",
    )
    sub = command(
        "audit",
        run_audit,
        "does a checkpoint belong to a model, and is anything odd in it",
        "checkpoint",
    )
    sub.add_argument("--model", help="config.json of the model; default: the one beside the weights")
    sub.add_argument("--tree", choices=("ms", "pt"), help="default: every tree that is installed")
    return top


def run_golden(arguments: argparse.Namespace) -> int:
    results = []
    for result in check(functools.partial(exact_tree, arguments.tree), arguments.folder, arguments.case):
        results.append(result)
        print(describe(result), flush=True)
    print(summary(results))
    save(arguments, [as_record(r) for r in results])
    return 0 if all(r.passed for r in results) else 1


def open_tree(name: str, device: str) -> Tree:
    """A tree for recordings; on an accelerator, whose float32 may be less, a line says what it is."""
    tree = exact_tree(name, device)
    if tree.device != "cpu":
        print(tree.runtime.exact_float32(tree.device), flush=True)
    return tree


def run_dump(arguments: argparse.Namespace) -> int:
    config = load(DumpConfig, arguments.config, arguments.override)
    prepare_folder(str(Path(arguments.out).parent))
    made = dump(config, open_tree(arguments.tree, config.device))
    recording.write(arguments.out, made)
    print(f"{arguments.out}: {len(made.tensors)} tensors, seconds per stage {made.facts['seconds']}")
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    a, b = recording.read(arguments.a), recording.read(arguments.b)
    oracle = recording.read(arguments.oracle) if arguments.oracle else None
    if oracle is not None:
        check_oracle(oracle, b)
    only = unshared_stages(a, b, arguments.select)
    for side, stages in only.items():
        print(f"only in {side}, not compared: {', '.join(stages)}")
    result = compare(a, b, oracle, arguments.select)
    if not result.rows:
        raise InputError(f"compare: no stage that both recordings have matches {arguments.select!r}")
    print_comparison(result)
    for key, ours, theirs in differing_settings(a, b):
        print(f"note: the configs differ in {key}: {ours} in A, {theirs} in B")
    if arguments.json:
        rows = [
            {**row._asdict(), "difference": row.difference and row.difference._asdict()}
            for row in result.rows
        ]
        write_json(
            arguments.json,
            {"passed": result.passed, "facts": [a.facts, b.facts], "only_in": only, "rows": rows},
        )
    if arguments.html:
        with whole_file(arguments.html) as temporary:
            temporary.write_text(report.page(a, b, result, (Path(arguments.a).name, Path(arguments.b).name)))
    return 0 if result.passed else 1


def print_comparison(result: Comparison) -> None:
    """A line for each stage, one for each failed tensor (at most ten a stage), and the verdict."""
    for stage in dict.fromkeys(row.name.partition("/")[0] for row in result.rows):
        rows = [row for row in result.rows if row.name.startswith(f"{stage}/")]
        failed, first = [row for row in rows if row.verdict != "pass"], result.first_failed(stage)
        worst = max((row for row in rows if row.difference), key=lambda row: row.relative, default=None)
        told = f"worst {worst.relative:.1e} in {worst.name}" if worst else ""
        print(f"{stage:11} {len(rows) - len(failed):5} of {len(rows):5} agree; {told}")
        for row in failed[:10]:
            print(f"    {row.name}: {row.relative:.1e}, allowed {row.tolerance:.0e}  {row.note}")
        if first is not None:
            print(f"    first to differ: {first.name}")
    agreeing = len(result.rows) - len(result.failed)
    print(f"{'PASS' if result.passed else 'FAIL'}: {agreeing} of {len(result.rows)} tensors agree")


def on_cpu(config: DumpConfig) -> DumpConfig:
    """Both trees meet on the CPU only.

    Raises:
        InputError: the config asks for an accelerator.
    """
    if kind_of(config.device) not in ("auto", "cpu"):
        raise InputError(
            f"device: got {config.device!r}; both trees in one process run on the CPU: device=cpu"
        )
    return config


def run_bisect(arguments: argparse.Namespace) -> int:
    config = on_cpu(load(DumpConfig, arguments.config, arguments.override))
    a, b = Tree(arguments.a, "cpu"), Tree({"ms": "pt", "pt": "ms"}[arguments.a], "cpu")
    findings = [finding for stage in PASSES for finding in bisect(config, a, b, None, stage)]
    for f in findings:
        at = "" if f.amplitude == 1.0 else f" at {f.amplitude:g} of the amplitude"
        print(
            f"{b.name} {f.name}: {f.relative:.1e} off{at}, allowed {f.tolerance:.0e}, given {a.name}'s inputs"
        )
    print(
        f"{len(findings)} modules are wrong on their own"
        + (f", the first is {findings[0].name}" if findings else "")
    )
    save(arguments, [f._asdict() for f in findings])
    return 1 if findings else 0


def run_modes(arguments: argparse.Namespace) -> int:
    config = load(DumpConfig, arguments.config, arguments.override)
    results = list(modes(config, open_tree(arguments.tree, config.device)))
    for r in results:
        print(f"{r.verdict}  {r.name}: {r.relative:.1e}, allowed {r.tolerance:.0e}")
    save(arguments, [r._asdict() for r in results])
    return 0 if all(r.verdict == "pass" for r in results) else 1


def run_selftest(arguments: argparse.Namespace) -> int:
    outcomes = []
    config = on_cpu(load(DumpConfig, arguments.config, arguments.override))
    for outcome in selftest(config, Tree("ms", "cpu"), Tree("pt", "cpu")):
        outcomes.append(outcome)
        state = "found" if outcome.found else f"NOT FOUND, expected {outcome.fault.expected}"
        print(f"{outcome.fault.name}: {outcome.fault.found_by} names {outcome.named}: {state}", flush=True)
    save(arguments, [{"fault": o.fault.name, "named": o.named, "found": o.found} for o in outcomes])
    found = sum(outcome.found for outcome in outcomes)
    print(f"{found} of {len(FAULTS)} planted faults found and named")
    return 0 if found == len(FAULTS) else 1


def run_audit(arguments: argparse.Namespace) -> int:
    beside = Path(arguments.checkpoint)
    path = Path(arguments.model or (beside.parent if beside.is_file() else beside) / "config.json")
    content = read_json(path)
    kind = content.get("_class_name", "WFVAEModel")
    cls = TransformerConfig if "num_attention_heads" in content else VAEConfig
    if cls is VAEConfig and kind != "WFVAEModel":
        raise InputError(f"audit {path}: got a {kind}, wanted a transformer or a WF-VAE")
    config, weights = build(cls, content, where=str(path)), StoredWeights(arguments.checkpoint)
    problems = []
    for name in [arguments.tree] if arguments.tree else installed_trees():
        problems += [f"{name}: {line}" for line in audit_keys(Tree(name, "cpu"), config, weights)]
    reports, hashes = audit_tensors(weights), sha256(arguments.checkpoint)
    for r in reports:
        print(f"{r.name} {r.shape} {r.dtype}: mean {r.mean:.2e}, std {r.std:.2e}, largest {r.largest:.2e}")
    odd = [r for r in reports if r.odd]
    for line in [*problems, *(f"odd: {r.name} {r.shape}: {', '.join(r.odd)}" for r in odd)]:
        print(line)
    for name, digest in hashes.items():
        print(f"sha256 {digest}  {name}")
    save(arguments, {"problems": problems, "tensors": [r._asdict() for r in reports], "sha256": hashes})
    print(f"{len(weights)} tensors, {len(problems)} keys wrong, {len(odd)} tensors odd")
    return 1 if problems or odd else 0


def installed_trees() -> list[str]:
    """The trees whose framework is on this machine."""
    return [tree for tree, name in (("ms", "mindspore"), ("pt", "torch")) if importlib.util.find_spec(name)]


def save(arguments: argparse.Namespace, measurements: object) -> None:
    """Write the measurements if --json asks for it."""
    if arguments.json:
        write_json(arguments.json, measurements)


def describe(result: CaseResult) -> str:
    """A golden case as text: one line, and one more for each output."""
    state = result.state.upper() if result.state == FAIL else result.state
    head = f"{result.name}: {state} ({result.seconds:.1f} s)"
    if len({(v.verdict, v.note) for v in result.verdicts}) == 1 and result.verdicts[0].difference is None:
        return f"{head}: {result.verdicts[0].note}"  # the case as a whole
    lines = [head]
    for v in result.verdicts:
        d = v.difference
        numbers = f"max_abs {d.max_abs:.1e}  rel_l2 {d.relative_l2:.1e}  cos {d.cosine:.7f}" if d else ""
        lines.append(f"  {v.verdict:15} {v.output:42} {numbers}  tol {v.tolerance:.1e}  {v.note}".rstrip())
    return "\n".join(lines)


def as_record(result: CaseResult) -> dict:
    """A golden case as JSON."""
    outputs = [
        {**v._asdict(), "difference": v.difference._asdict() if v.difference else None}
        for v in result.verdicts
    ]
    return {
        "case": result.name,
        "state": result.state,
        "seconds": round(result.seconds, 2),
        "outputs": outputs,
    }


if __name__ == "__main__":
    sys.exit(main())

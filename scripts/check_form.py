"""The form of the code, measured: sizes, names, forbidden words, paired tests. Exit code 1 on a finding.

What is over a limit today may stand in `form_ratchet.toml` with its measure; an entry may only shrink and then go away.
"""

import ast
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import attrs

from scripts.form_rules import Finding, Source, findings_of_source, findings_of_text, untested_protocols

SOURCE_FOLDERS = ("node", "protocols", "simnet", "scripts")
TEXT_SUFFIXES = (".py", ".md", ".toml", ".yml", ".yaml", ".cfg", ".sh", "")


def tracked_files(root: Path) -> list[Path]:
    """Paths relative to the root of what is, or would be, committed."""
    listing = subprocess.run(
        ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        names = sorted(set(listing.stdout.decode().split("\0")) - {""})
        return [Path(name) for name in names if (root / name).is_file()]
    # An unpacked archive has no git: then everything that does not begin with a dot.
    found = (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file())
    return [path for path in found if not any(part.startswith(".") or part == "__pycache__" for part in path.parts)]


def read_sources(root: Path, files: list[Path]) -> list[Source]:
    """Every Python file of the project, parsed. SyntaxError names the file."""
    sources = []
    for path in files:
        if path.suffix == ".py" and path.parts[0] in (*SOURCE_FOLDERS, "tests"):
            text = (root / path).read_text(encoding="utf-8")
            sources.append(Source(path.as_posix(), text, ast.parse(text, filename=path.as_posix())))
    return sources


def all_findings(root: Path) -> tuple[list[Source], list[Finding]]:
    """The sources of a checkout and everything that stands out in them, ratchets not yet considered."""
    files = tracked_files(root)
    sources = read_sources(root, files)
    findings = [finding for source in sources for finding in findings_of_source(source)]
    for path in files:
        if path.suffix in TEXT_SUFFIXES:
            text = (root / path).read_text(encoding="utf-8", errors="replace")
            findings += findings_of_text(path.as_posix(), text)
    findings += untested_protocols(sources)
    return sources, findings


def apply_ratchet(findings: list[Finding], allowed: dict[str, dict[str, int]]) -> Iterator[str]:
    """One line for each finding that the table does not allow, and for each entry that became too generous."""
    remaining = {(rule, where): limit for rule, entries in allowed.items() for where, limit in entries.items()}
    for finding in findings:
        limit = remaining.pop((finding.rule, finding.where), None)
        if limit is None:
            yield f"{finding.where}: {finding.text}"
        elif finding.measure > limit:
            yield f"{finding.where}: {finding.text} (its ratchet stands at {limit})"
        elif finding.measure < limit:
            yield f"{finding.where}: is down to {finding.measure}: lower its {finding.rule} ratchet from {limit}"
    for (rule, where), limit in remaining.items():
        yield f"{where}: is within the rule now: remove its {rule} ratchet of {limit}"


@attrs.frozen
class Sizes:
    """Three numbers that tell a distribution's tail."""

    median: float
    ninth_decile: float
    largest: int

    @classmethod
    def of(cls, values: list[int]) -> "Sizes":
        """The sizes of a list; zeros for an empty one."""
        if len(values) < 2:
            return cls(sum(values), sum(values), sum(values))
        return cls(statistics.median(values), statistics.quantiles(values, n=10, method="inclusive")[8], max(values))

    def __str__(self) -> str:
        return f"{self.median:5.0f} {self.ninth_decile:5.0f} {self.largest:5d}"


def print_numbers(sources: list[Source]) -> None:
    """A table with one row a folder: how much there is, and how long its files and functions are."""
    print(f"{'':10} {'files':>5} {'lines':>6}  {'lines a file':^17}  {'lines a function':^17}  {'documented':>10}")
    print(f"{'':10} {'':5} {'':6}  {'med':>5} {'p90':>5} {'max':>5}  {'med':>5} {'p90':>5} {'max':>5}")
    for folder in (*SOURCE_FOLDERS, "tests"):
        chosen = [source for source in sources if source.path.startswith(folder + "/")]
        if not chosen:
            continue
        lines = [source.line_count for source in chosen]
        functions = [length for source in chosen for length in source.function_lengths()]
        documented, public = map(sum, zip(*(source.documented() for source in chosen), strict=True))
        share = f"{documented / public:.0%}" if public else "-"
        sizes = f"{Sizes.of(lines)}  {Sizes.of(functions)}"
        print(f"{folder:10} {len(chosen):5} {sum(lines):6}  {sizes}  {share:>10}")


def main() -> int:
    """Check the checkout this file stands in."""
    root = Path(__file__).resolve().parent.parent
    allowed = tomllib.loads((root / "scripts" / "form_ratchet.toml").read_text(encoding="utf-8"))
    sources, findings = all_findings(root)
    problems = list(apply_ratchet(findings, allowed))
    print_numbers(sources)
    for problem in problems:
        print(problem)
    ratchets = sum(len(entries) for entries in allowed.values())
    print(f"form: {len(problems)} findings, {ratchets} ratchets")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

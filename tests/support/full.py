"""All tests but the soak: `python -m tests.support.full [--jobs N] [--retry]`. CI and `make test-all` run this.

First what bears a busy machine, side by side; then the tests marked `timing`, one after the other. With `--retry`, what
failed is run once more, alone: what fails again has failed, and what passes then is shown at the end as flaky, with the
log of its failure.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAILED_BEFORE = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"  # pytest's own, kept over both calls
CLOSING = re.compile(r"^=+ (.*) in [0-9.]+s.*=+$")
COUNT = re.compile(r"([0-9]+) (passed|failed|errors?|skipped|xfailed|deselected|warnings?)")
OK, FAILURES, NO_TESTS = 0, 1, 5  # exit codes of pytest; all others mean that it did not get through


def run(*args: str, counts: Counter[str]) -> int:
    """Run pytest, pass on what it prints, and add up its closing line."""
    command = [sys.executable, "-m", "pytest", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="backslashreplace", cwd=ROOT)
    assert process.stdout is not None
    closing = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        if match := CLOSING.match(re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip())):
            closing = match[1]
    for number, kind in COUNT.findall(closing):
        counts[kind.removesuffix("s")] += int(number)
    return process.wait()


def failed_before() -> list[str]:
    """List the tests and modules that failed, by pytest's own notes."""
    return sorted(json.loads(FAILED_BEFORE.read_text())) if FAILED_BEFORE.exists() else []


def retry(logs: Path) -> tuple[list[str], bool]:
    """Run what failed once more, alone; return what passed this time, and whether all of it did."""
    first = failed_before()
    print(f"\nonce more, alone: {len(first)} that failed", flush=True)
    code = run("--last-failed", "--last-failed-no-failures=none", "-m", "not soak", counts=Counter())
    again = failed_before()
    flaky = [test for test in first if test not in again]
    kept = [(path, path.read_text(errors="backslashreplace")) for path in sorted(logs.iterdir())]
    for test in flaky:
        print(f"\n{' flaky: ' + test + ' ':=^100}")
        for _path, text in kept:
            if text.partition("\n")[0] == test:
                print(text.partition("\n")[2])
    return flaky, bool(first) and code == OK and not again


def main() -> int:
    """Run both parts; return 0 only if every test has passed, or has on its second time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", default="4", help="processes of the part that bears a busy machine")
    parser.add_argument("--retry", action="store_true", help="run what failed once more")
    options = parser.parse_args()
    began_s = time.monotonic()
    counts = Counter[str]()
    flaky: list[str] = []
    FAILED_BEFORE.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="failures-") as folder:
        keep = [f"--keep-failures={folder}"]  # in one word, or pytest takes the folder for the place of tests
        side_by_side = ["-n", options.jobs, "--dist", "loadfile"] if options.jobs != "1" else []
        codes = {
            run(*keep, *side_by_side, "-m", "not timing and not soak", counts=counts),
            run(*keep, "-m", "timing and not soak", counts=counts),
        }
        good = codes <= {OK, NO_TESTS}
        if not good and options.retry and codes <= {OK, FAILURES, NO_TESTS}:
            flaky, good = retry(Path(folder))
    if good and not counts["passed"]:
        print("no test was run")
        good = False
    failed = failed_before()
    for kind, tests in (("FLAKY", flaky), ("FAILED", failed)):
        for test in tests:
            print(kind, test)
    if not good and not failed:
        print("pytest did not get through: see above")
    told = {"failed": len(failed), "passed": counts["passed"] + len(flaky), "skipped": counts["skipped"]}
    told |= {"flaky": len(flaky)} if flaky else {}
    text = ", ".join(f"{count} {kind}" for kind, count in told.items() if count or kind == "failed")
    print(f"{f' {text} in {time.monotonic() - began_s:.2f}s ':=^100}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

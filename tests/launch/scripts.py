"""Running the scripts of `launch/` with nothing of this machine's environment but its PATH."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / 'launch'

# Stands for gcloud, kubectl, xpk, sbatch ...: notes how it was called, and says what `wait_until_active` waits for.
TOOL = f"""#!{sys.executable} -IS
import json, os, sys
stdin = '' if sys.stdin.isatty() else sys.stdin.read()
with open(os.environ['CALLS'], 'a') as calls:
    print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:], stdin]), file=calls)
print(os.environ.get('TOOL_SAYS', 'ACTIVE'))
sys.exit(int(os.environ.get('TOOL_ENDS_WITH', '0')))
"""


def bash(*words: str | Path, env: Mapping[str, str] | None = None, home: Path | None = None, stdin: str = ''):
    """`bash WORD...`, ended, with its output as text."""
    environment = {'PATH': os.environ['PATH'], 'HOME': str(home or '/nonexistent'), **(env or {})}
    return subprocess.run(
        ['bash', *map(str, words)],
        env=environment,
        cwd=home,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )


def launch(script: str, *words: str, **options):
    """`bash launch/SCRIPT WORD...`"""
    return bash(LAUNCH / script, *words, **options)


def tools(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which these commands only note how they were called, in `folder`."""
    (folder / 'bin').mkdir()
    for name in names:
        tool = folder / 'bin' / name
        tool.write_text(TOOL)
        tool.chmod(0o755)
    return {'PATH': f'{folder / "bin"}:{os.environ["PATH"]}', 'CALLS': str(folder / 'calls')}


def calls(env: Mapping[str, str]) -> list[list[str]]:
    """How they were called since this was last asked: the command, its arguments, its standard input."""
    path = Path(env['CALLS'])
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]


def refused(result: subprocess.CompletedProcess, *parts: Sequence[str]) -> bool:
    """Whether it ended as wrong usage does: code 2, nothing on stdout, one line on stderr that holds all the parts."""
    lines = result.stderr.splitlines()
    return result.returncode == 2 and not result.stdout and len(lines) == 1 and all(part in lines[0] for part in parts)

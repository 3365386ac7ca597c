#!/usr/bin/env bash
# launch/check.sh once more, under Python 3.12, in a virtual environment that is removed afterwards:
#   bash launch/check_py312.sh
# The interpreter is PYTHON312 if set, else python3.12 on the PATH, else one that pyenv keeps.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_or "${1:-}"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

find_python312() {
  local candidate
  for candidate in "${PYTHON312:-}" python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python; do
    [[ -n $candidate ]] || continue
    # Executed, not only searched: pyenv's shims exist for versions that are not enabled.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  return 1
}

if ! python312=$(find_python312); then
  echo "check_py312: no Python 3.12 found (tried \$PYTHON312, python3.12 and pyenv). Nothing was checked." >&2
  exit 1
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python312" -m venv "$folder/venv"
PYTHON="$folder/venv/bin/python" bash "$root/launch/check.sh"

#!/usr/bin/env bash
# From nothing to enhanced videos and a trained stage on two CPU cores, in some 7.5 minutes and 3.1 GB after the install:
#   bash launch/quickstart.sh [FOLDER]           (default: quickstart)
#   bash launch/quickstart.sh --full [FOLDER]    trains from nothing: 16 minutes more
# Installs fv_jax into the environment of ${PYTHON:-python3} and, with the small weights in the package, samples a preview from
# a prompt and enhances it (FOLDER/preview), enhances a held-out clip (FOLDER/clip) and continues stage 2 on the videos in the
# package (FOLDER/run): stopped once, as by a preemption, and resumed. FOLDER/result/report.html compares before and after on
# held-out clips. Run it again to resume.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=launch/parts.sh
. "$(dirname "${BASH_SOURCE[0]}")/parts.sh"
config=stage2:quickstart
if [[ ${1:-} == --full ]]; then
  config=stage2:tiny
  shift
fi
help_or "${1:-}"

folder="$(mkdir -p "${1:-quickstart}" && cd "${1:-quickstart}" && pwd)"
enter_root
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

say() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }
fv() { "$PYTHON" -m "fv_jax.$1" "${@:2}"; }
train=("$PYTHON" -m fv_jax.train --config="$config" --workdir="$folder/run")

# train_until_saved: sends SIGTERM when the first checkpoint exists, and waits for the run to save its state and end.
train_until_saved() {
  local status=0
  "${train[@]}" &
  while kill -0 $! 2>/dev/null && ! compgen -G "$folder/run/checkpoints/[0-9]*" >/dev/null; do sleep 1; done
  kill -TERM $! 2>/dev/null || true
  wait $! || status=$?
  ((status == 0 || status == PREEMPTED)) || exit "$status"
}

say 'installing'
install_extra evaluation
SECONDS=0
say 'a preview from a prompt, and its enhanced video'
fv sample preview --output="$folder/preview" --prompt='a ladybug moves from left to right over a beach'
fv sample enhance "$folder/preview/0" --stage2.tile_size="(288,416)" # in half of the memory
say 'a held-out clip, enhanced by the small stage 2 in the package'
fv evaluate --checkpoint=embedded --heldout=embedded --num-clips=1 --num-steps=4 --vgg-frames=1 --overwrite --output="$folder/clip"
say "training: $config"
if [[ ! -e $folder/run/checkpoints ]]; then
  train_until_saved
  say 'the same command resumes the training'
fi
"${train[@]}"
say 'before and after, on held-out clips'
fv evaluate --checkpoint="$folder/run" --compare embedded --num-steps=4 --vgg-frames=1 --overwrite --output="$folder/result"
say 'done'
cat <<EOF
The preview and its video:  $folder/preview/0/preview.mp4, video.mp4
Before and after training:  $folder/result/report.html
Next: python -m fv_jax.sample preview --output out --prompt "a red car moves from right to left over a meadow"
      python -m fv_jax.sample clip --checkpoint="$folder/run" --input=YOUR.mp4 --output=enhanced.mp4
      python -m fv_jax.app     (a page in the browser; pip install -e '.[app]')
      "Train on your own videos" in README.md
EOF

#!/usr/bin/env bash
# Collects photographs to train the small networks on, out of five Debian packages (no root needed):
#   bash launch/photographs.sh FOLDER      FOLDER/train and FOLDER/heldout, JPEGs of at most 2048 pixels
# Their licences are CC0, CC BY, CC BY-SA, LGPL and GPL (debian/copyright of each package): to train on, not to ship.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_or "${1:-}"
: "${1:?give the folder to write to}"

HELDOUT='Kite|Dune|cloud|picosdeeuropa|Dragonfly|TwoWings|ColorfulCups|appleflower'
PATTERN='(backgrounds/[^/]*_by_[^/]*|mate/nature/[^/]*|lxqt/wallpapers/(flowers|fog|after-the-rain|appleflower|cloud|drop|butterfly|Valendas)[.][a-z]*'
PATTERN+='|wallpapers/(FallenLeaf|Path|DarkestHour|summer_1am|EveningGlow|Kite|ColorfulCups|OneStandsOut|ColdRipple|BytheWater)/contents/images/[^/]*)'
DRAWINGS='analogpattern|Painting-Colors|Infinite-Sea|Wood.jpg'

mkdir -p "$1/train" "$1/heldout"
target="$(cd "$1" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq -o APT::Sandbox::User=root lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 plasma-workspace-wallpapers mate-backgrounds lxqt-themes
for package in ./*.deb; do dpkg-deb -x "$package" files; done
find files -type f -regextype posix-extended -regex ".*/$PATTERN" | grep -Ev "$DRAWINGS" | sort >photographs
"${PYTHON:-python3}" -c '
import pathlib, re, sys
from PIL import Image

target, heldout = pathlib.Path(sys.argv[1]), sys.argv[2]
counts = {"train": 0, "heldout": 0}
for line in sys.stdin:
    path = pathlib.Path(line.strip())
    name = path.stem if path.parent.name != "images" else path.parents[2].name
    with Image.open(path) as image:
        image = image.convert("RGB")
    image.thumbnail((2048, 2048), Image.Resampling.LANCZOS)
    split = "heldout" if re.search(heldout, name) else "train"
    image.save(target / split / f"{name}.jpg", quality=95)
    counts[split] += 1
print("{}: {train} for training, {heldout} held out".format(target, **counts))
' "$target" "$HELDOUT" <photographs
